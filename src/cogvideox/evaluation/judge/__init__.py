"""The judge of Storybook videos: what it reads in a video, fixed prompts, scores of what a model makes."""
