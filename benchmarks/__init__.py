"""Speed and memory, side by side with diffusers or with another commit: see docs/performance.md."""
