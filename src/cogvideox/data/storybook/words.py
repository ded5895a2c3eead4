"""Words of Storybook captions: how each gait is told, and synonyms. The vocabulary stays small."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Gait:
    """A way of moving. Verbs are in the third person."""

    verbs: tuple[str, ...]
    quick: tuple[str, ...]
    """Verbs that already say "quickly"."""
    air: bool = False
    """Moves through the air."""
    water: bool = False
    """Belongs on or in water."""
    bob: float = 0.0
    """Height of each step over the character's size."""
    rhythm: float = 2.0
    """Steps per second."""
    sink: float = 0.05
    """Share of its height that is under water while it is on the water's surface."""


GAITS = {
    "walk": Gait(("walks", "strolls", "wanders"), ("runs", "races")),
    "stroll": Gait(("walks", "strolls"), ("hurries", "rushes")),
    "run": Gait(("runs", "jogs"), ("sprints", "races")),
    "gallop": Gait(("trots", "gallops"), ("gallops", "races")),
    "scurry": Gait(("scurries", "runs"), ("dashes", "races")),
    "hop": Gait(("hops", "hops along"), ("bounds", "races"), bob=0.22, rhythm=2.2),
    "bounce": Gait(("hops", "bounces along"), ("bounds", "races"), bob=0.26, rhythm=1.8),
    "waddle": Gait(("waddles", "walks"), ("hurries", "runs")),
    "crawl": Gait(("crawls", "creeps"), ("scuttles", "hurries")),
    "slither": Gait(("slithers", "glides"), ("darts", "races")),
    "roll": Gait(("rolls", "glides"), ("races", "rushes")),
    "slide": Gait(("slides", "glides"), ("rushes", "races")),
    "twist": Gait(("whirls", "twists"), ("rushes", "races")),
    "tumble": Gait(("tumbles", "cartwheels"), ("rushes", "races")),
    "dance": Gait(("dances", "steps"), ("whirls", "rushes")),
    "drive": Gait(("drives", "rolls"), ("speeds", "races")),
    "cycle": Gait(("rides", "cycles"), ("speeds", "races")),
    "ski": Gait(("skis", "glides"), ("speeds", "races")),
    "swim": Gait(("swims", "glides"), ("darts", "races"), water=True, sink=0.24),
    "paddle": Gait(("swims", "paddles"), ("rushes", "races"), water=True, sink=0.1),
    "sail": Gait(("sails", "glides"), ("speeds", "races"), water=True),
    "surf": Gait(("surfs", "glides"), ("speeds", "races"), water=True),
    "fly": Gait(("flies", "soars"), ("darts", "races"), air=True),
    "flutter": Gait(("flutters", "flies"), ("darts", "races"), air=True),
    "hover": Gait(("glides", "floats"), ("darts", "races"), air=True),
    "drift": Gait(("drifts", "floats"), ("rushes", "races"), air=True),
    "blast": Gait(("flies", "zooms"), ("shoots", "blasts"), air=True),
    "float": Gait(("floats", "drifts"), ("rushes", "races"), air=True),
}

IDLE = {
    "juggler": "juggles|colored balls",
    "weightlifter": "lifts|heavy weights",
    "dancer": "dances|on the spot",
    "disco dancer": "dances|on the spot",
    "fire": "burns|brightly",
    "tornado": "whirls|in one place",
    "ferris wheel": "turns|in one place",
    "fountain": "splashes|water",
    "runner": "runs|in place",
    "running woman": "runs|in place",
    "walking man": "walks|in place",
    "walking woman": "walks|in place",
    "cyclist": "pedals|in place",
    "rower": "rows|in place",
    "fencer": "fences|on the spot",
    "heart": "beats|in the air",
    "alarm clock": "rings|loudly",
    "cartwheeler": "balances|on both hands",
    "basketball player": "plays|with a ball",
    "swimmer": "swims|in place",
    "star": "shines|brightly",
    "rain cloud": "rains|on the ground",
    "yogi": "meditates|calmly",
}
"""What some characters do when they stay in place: verb | rest."""

STAY = {
    "ground": ("stands|still", "stays|in place", "waits|in place"),
    "water": ("floats|on the water", "stays|in place on the water"),
    "air": ("hovers|in the air", "floats|in place", "stays|in the air"),
    "free": ("floats|in place", "hovers|in place"),
}
"""The same for everybody else, by mode."""

SIDES = {
    "left": ("to the left", "from right to left", "toward the left"),
    "right": ("to the right", "from left to right", "toward the right"),
    "up": ("up", "upward"),
    "down": ("down", "downward"),
    "up-left": ("up and to the left", "diagonally up to the left"),
    "up-right": ("up and to the right", "diagonally up to the right"),
    "down-left": ("down and to the left", "diagonally down to the left"),
    "down-right": ("down and to the right", "diagonally down to the right"),
}

SPEED = {"slowly": ("slowly", "slowly", "at a slow pace"), "quickly": ("quickly", "fast", "at high speed")}

MOTION = {
    "jump": ("jumps|into the air", "leaps|into the air", "jumps|up"),
    "jumps": ("jumps|up and down", "jumps|again and again", "keeps jumping|"),
    "bounce": ("bounces|up and down", "bounces|like a ball", "keeps bouncing|"),
    "spin": ("spins|around", "turns|around and around", "rotates|in place"),
    "circle": ("{v}|in a circle", "{v}|around in circles"),
    "pace": ("{v}|back and forth", "{v}|to and fro"),
    "zigzag": ("zigzags|{side}", "{v}|in a zigzag {side}"),
    "approach": ("comes|closer", "{v}|closer", "approaches|from far away"),
    "recede": ("{v}|away", "{v}|away into the distance", "goes|far away"),
    "enter": ("{v}|in from the {edge}", "enters|from the {edge}", "appears|from the {edge}"),
    "leave": ("{v}|out to the {edge}", "leaves|to the {edge}", "disappears|to the {edge}"),
}
"""Motion phrases: verb | rest; {v} is a verb of the gait."""

CAMERA = {
    "pan left": ("the camera pans to the left", "the view moves to the left"),
    "pan right": ("the camera pans to the right", "the view moves to the right"),
    "pan up": ("the camera tilts up", "the view moves up"),
    "pan down": ("the camera tilts down", "the view moves down"),
    "zoom in": ("the camera zooms in", "the view slowly zooms in"),
    "zoom out": ("the camera zooms out", "the view slowly zooms out"),
    "follow": ("the camera follows {it}", "the camera moves along with {it}"),
    "static": ("the camera stays still", "the view does not move"),
}

STYLE = {
    "pixel art": ("in pixel art style", "as pixel art"),
    "watercolor": ("as a watercolor painting", "in watercolor style"),
    "black and white": ("in black and white", "in black and white"),
    "oil painting": ("as an oil painting", "in oil painting style"),
    "neon": ("with glowing neon lines", "in neon style"),
    "sepia": ("in sepia tones", "in sepia style"),
    "pencil sketch": ("as a pencil sketch", "in pencil sketch style"),
    "comic": ("in comic style", "as a comic drawing"),
}

EVENT = {
    "nightfall": (
        "day turns into night",
        "night falls and stars appear",
        "it gets dark and the moon appears",
    ),
    "rain": ("it starts to rain", "rain begins to fall"),
    "snow": ("it starts to snow", "snow begins to fall"),
}

TURNS = ("turns into", "changes into", "is transformed into")

SETTING = {
    "meadow": (
        "The grass is green and the sky is blue.",
        "Small trees stand on the hills.|White clouds drift by.",
    ),
    "forest": ("Tall trunks reach into dark green leaves.", "Red mushrooms grow in the grass.|"),
    "snow": ("Everything is white.", "Fir trees and mountains stand behind.|"),
    "mountains": (
        "White peaks stand behind fir trees.",
        "The ground is gray and stony.|Clouds drift over the peaks.",
    ),
    "desert": ("The sand is yellow.", "The sun is shining.|Dust drifts over the sand."),
    "beach": ("The sand is yellow and the water is blue.", "The sun is shining.|Small waves glitter."),
    "sea": ("The water is dark blue.", "White foam covers the waves.|Waves glitter all around."),
    "underwater": ("Light shines through the blue water.", "Green seaweed grows on the sand.|Bubbles rise."),
    "waterfall": (
        "A white waterfall covers a high cliff.",
        "Green plants grow on the rocks.|Water rushes down.",
    ),
    "city": ("Tall houses stand in rows.", "A gray road lies in front.|Clouds drift over the roofs."),
    "night city": ("Many windows are lit.", "Lamps shine on the dark road.|Stars twinkle above."),
    "rainy street": ("Small shops stand along the wet road.", "The sky is gray.|Rain keeps falling."),
    "room": ("There is a red rug on the wooden floor.", "Windows with curtains let in light.|"),
    "farm": ("A white fence stands on the grass.", "The fields are yellow.|Clouds drift by."),
    "starry night": ("The night sky is full of stars.", "Dark trees stand on the hills.|Stars twinkle."),
    "sunset": ("The sky is orange and purple.", "The big sun is low.|"),
    "space": ("The background is dark with many stars.", "Colored mist fills the sky.|Stars twinkle."),
    "volcano": ("Red lava covers the dark mountain.", "The sky is dark red.|Sparks rise into the air."),
    "autumn park": (
        "The trees are orange and red.",
        "Dry leaves cover the ground.|Leaves fall from the trees.",
    ),
    "candy land": ("Everything is pink and sweet.", "Colorful lollipops stand on the hills.|"),
}
"""Sentences about each scene: always true; details | what moves ("" if nothing does)."""

MOVING_NOUNS = frozenset(
    "running walking hopping galloping soaring flying slithering surfing skiing juggling dancing "
    "swimming sailing rowing dribbling throwing lifting doing ringing spouting fast burning raining "
    "beating shooting rider twister".split()
)
"""A still picture is not named with these words."""

PLURALS = {
    "mouse": "mice",
    "man": "men",
    "woman": "women",
    "sheep": "sheep",
    "deer": "deer",
    "fish": "fish",
    "bison": "bison",
    "pufferfish": "pufferfish",
    "superhero": "superheroes",
}
DOUBLED = frozenset(("run", "hop", "jog", "trot", "swim", "spin", "step", "zigzag"))


def base(verb: str) -> str:
    """Plain form of a third-person verb (first word): "flies" gives "fly"."""
    head, _, rest = verb.partition(" ")
    if head.endswith("ies"):
        head = head[:-3] + "y"
    elif head.endswith(("ches", "shes", "sses", "xes", "goes", "does")):
        head = head[:-2]
    else:
        head = {"is": "be", "has": "have"}.get(head, head[:-1])
    return f"{head} {rest}".strip()


def gerund(verb: str) -> str:
    """The -ing form of a third-person verb: "runs in" gives "running in"."""
    head, _, rest = base(verb).partition(" ")
    if head in DOUBLED:
        head += head[-1]
    elif head.endswith("e") and not head.endswith(("ee", "be", "oe")):
        head = head[:-1]
    return f"{head}ing {rest}".strip()


def plural(noun: str) -> str:
    """Plural of a noun phrase whose last word is its head."""
    rest, _, head = noun.rpartition(" ")
    if head in PLURALS:
        head = PLURALS[head]
    elif head.endswith(("s", "x", "ch", "sh")):
        head += "es"
    elif head.endswith("y") and head[-2] not in "aeiou":
        head = head[:-1] + "ies"
    else:
        head += "s"
    return f"{rest} {head}".strip()


def article(noun: str) -> str:
    """The noun with "a" or "an"."""
    return f"{'an' if noun[0] in 'aeio' or noun.startswith('hour') else 'a'} {noun}"


def sentence(text: str) -> str:
    """One line of text as a sentence: single spaces, a capital letter and a full stop."""
    text = " ".join(text.split())
    return text[0].upper() + text[1:] + ("" if text.endswith(".") else ".")
