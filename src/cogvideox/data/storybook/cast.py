"""The cast of Storybook: one row per animated character.

Columns: `name` (spaces as `_`), the emoji it is drawn from, `gait` (how it moves, see `words.GAITS`), the
side it faces in the source art (`left`, `right`, `front`, or the angle of its nose in degrees, counter-
clockwise from right), its size relative to the others, the places it belongs to (see `Scene.tags`), and other
names that captions may use.
"""

# Tables are read row by row.
# ruff: noqa: E501

from __future__ import annotations

import difflib
import math
from dataclasses import dataclass
from functools import lru_cache

from cogvideox.core.errors import InputError

ANIMALS = """
mouse           mouse2            scurry  left  0.85 land,room,farm      white mouse | little white mouse
cow             cow2              walk    left  1.1  land,farm           spotted cow | black and white cow
tiger           tiger2            walk    left  1.05 land,forest         orange tiger | striped tiger
leopard         leopard           walk    left  1.0  land,hot            spotted leopard | yellow leopard
rabbit          rabbit2           hop     left  0.9  land,farm,cold      white rabbit | bunny
black_cat       black_cat         walk    left  0.95 land,room,road      dark cat | black kitten
cat             cat2              walk    left  0.95 land,room,farm      orange cat | ginger cat
horse           racehorse         gallop  left  1.1  land,farm           brown horse | galloping horse
goat            goat              walk    left  1.0  land,farm,rock      brown goat | horned goat
sheep           sheep             walk    left  1.0  land,farm           white sheep | woolly sheep
monkey          monkey            scurry  left  0.95 forest,room         brown monkey | little monkey
dog             dog2              walk    left  0.95 land,room,farm,road yellow dog | puppy
pig             pig2              walk    left  0.95 farm,land           pink pig | little pink pig
elephant        elephant          walk    left  1.15 land,hot            gray elephant | big elephant
poodle          poodle            walk    left  0.95 room,road           gray poodle | fluffy poodle
camel           camel             walk    left  1.1  hot                 brown camel | camel with two humps
squirrel        chipmunk          hop     left  0.9  forest,land         striped squirrel | little squirrel
deer            deer              walk    left  1.05 forest,land,cold    stag | deer with antlers
gorilla         gorilla           walk    left  1.05 forest              dark gorilla | big gorilla
rhinoceros      rhinoceros        walk    left  1.1  hot,land            rhino | gray rhino
giraffe         giraffe_face      walk    left  1.15 hot,land            tall giraffe | spotted giraffe
zebra           zebra_face        walk    left  1.05 hot,land            striped zebra | black and white zebra
hedgehog        hedgehog          scurry  left  0.9  forest,land         brown hedgehog | spiky hedgehog
kangaroo        kangaroo          hop     left  1.05 hot,land            brown kangaroo | hopping kangaroo
llama           llama             walk    left  1.05 rock,land,farm      white llama | fluffy llama
hippo           hippopotamus      walk    left  1.1  hot,land            gray hippo | big hippo
mammoth         mammoth           walk    left  1.15 cold                woolly mammoth | brown mammoth
skunk           skunk             scurry  left  0.95 forest,land         black and white skunk | little skunk
bison           bison             walk    left  1.1  land,cold           brown bison | big bison
turtle          turtle            crawl   left  0.9  land,beach,under    green turtle | little turtle
brachiosaurus   sauropod          walk    left  1.15 land,hot,forest     long-necked dinosaur | green brachiosaurus
dinosaur        t-rex             walk    left  1.1  land,hot,forest     green dinosaur | t-rex
snake           snake             slither left  0.95 hot,forest,land     green snake | slithering snake
snail           snail             crawl   left  0.85 land,farm           brown snail | little snail
caterpillar     bug               crawl   left  0.85 land,forest         green caterpillar | little caterpillar
spider          spider            crawl   front 0.85 forest,room,night   black spider | big spider
ladybug         ladybug           crawl   front 0.8  land,farm           red ladybug | spotted ladybug
rooster         rooster           walk    left  0.95 farm,land           colorful rooster | proud rooster
chick           baby_chick        hop     left  0.85 farm,land           yellow chick | baby chick
penguin         penguin           waddle  front 0.95 cold                purple penguin | little penguin
peacock         peacock           walk    left  1.05 land,farm           green peacock | blue and green peacock
flamingo        flamingo          walk    left  1.05 beach,land          pink flamingo | tall flamingo
dodo            dodo              waddle  left  1.0  land,beach          gray dodo | gray bird
crab            crab              crawl   front 0.9  beach,under         red crab | pink crab
panda           panda_face        bounce  front 0.9  forest,cold         black and white panda | round panda
frog            frog              bounce  front 0.85 land,forest         green frog | round frog
koala           koala             bounce  front 0.9  forest,room         gray koala | round koala
bear            bear              bounce  front 0.9  forest,rock         brown bear | round bear
bat             bat               flutter front 0.95 air,night           brown bat | little bat
bee             bee               flutter left  0.85 air,land,farm       striped bee | bumblebee
butterfly       butterfly         flutter front 0.9  air,land,forest     orange butterfly | monarch butterfly
dove            dove_of_peace     fly     left  0.95 air,land            white dove | white bird
eagle           eagle             fly     left  1.05 air,rock            brown eagle | soaring eagle
owl             owl               flutter front 0.9  air,night,forest    brown owl | wide-eyed owl
parrot          parrot            flutter left  0.9  air,forest          red parrot | colorful parrot
dragon          dragon            fly     left  1.15 air,night,rock      green dragon | flying dragon
whale           whale             swim    left  1.15 under,surface       blue whale | spouting whale
octopus         octopus           swim    front 1.0  under               orange octopus | orange and pink octopus
fish            fish              swim    left  0.9  under               blue fish | little blue fish
tropical_fish   tropical_fish     swim    left  0.9  under               blue and yellow fish | colorful fish
pufferfish      blowfish          swim    left  0.95 under               spiky fish | blowfish
dolphin         dolphin           swim    left  1.05 under,surface       blue dolphin | playful dolphin
shark           shark             swim    left  1.1  under,surface       gray shark | big shark
shrimp          shrimp            swim    left  0.9  under               red shrimp | orange shrimp
squid           squid             swim    front 1.0  under               purple squid | pink squid
seal            seal              waddle  left  1.0  cold,beach,under    gray seal | playful seal
duck            duck              paddle  left  0.9  surface,farm        green-headed duck | mallard
swan            swan              paddle  left  1.0  surface             white swan | graceful swan
"""

VEHICLES = """
motorcycle      racing_motorcycle drive   left  1.0  road                red motorcycle | motorbike
racing_car      racing_car        drive   left  1.0  road,hot            red racing car | race car
steam_train     steam_locomotive  drive   left  1.1  land,rock           steam engine | locomotive
tram            train             drive   left  1.1  road                red and white tram | streetcar
bus             bus               drive   left  1.1  road                yellow bus | orange and white bus
ambulance       ambulance         drive   left  1.05 road                white ambulance | red and white ambulance
fire_engine     fire_engine       drive   left  1.1  road                red fire truck | fire truck
police_car      police_car        drive   left  1.0  road                black and white police car | police cruiser
taxi            taxi              drive   left  1.0  road                yellow taxi | yellow cab
red_car         car               drive   left  1.0  road,land           red automobile | little red car
blue_jeep       blue_car          drive   left  1.0  road,hot,rock       jeep | blue off-road car
truck           truck             drive   left  1.05 road,farm           yellow truck | orange and yellow truck
lorry           articulated_lorry drive   left  1.1  road                green and white lorry | big lorry
tractor         tractor           drive   left  1.05 farm,land           green tractor | farm tractor
rickshaw        auto_rickshaw     drive   left  1.0  road                green and yellow rickshaw | three-wheeler
rocket          rocket            blast   45    1.05 space,air,night     white rocket | space rocket
helicopter      helicopter        fly     left  1.05 air                 orange helicopter | chopper
airplane        small_airplane    fly     45    1.05 air                 red airplane | propeller plane
flying_saucer   flying_saucer     hover   front 1.0  space,night,air     ufo | silver flying saucer
parachutist     parachute         drift   front 1.0  air                 colorful parachute | skydiver
cable_car       mountain_cableway hover   front 0.95 cold,rock           orange cable car | orange gondola
ship            ship              sail    left  1.1  surface             red and white ship | big ship
speedboat       speedboat         sail    left  1.0  surface             orange speedboat | fast boat
sailboat        boat              sail    left  1.05 surface             yellow sailboat | sailing boat
canoe           canoe             sail    front 0.95 surface             orange canoe | rowing canoe
"""

PEOPLE = """
runner          man-running       run     left  1.0  person,road,land    running man | jogger
running_woman   woman-running     run     left  1.0  person,road,land    woman in purple | female runner
walking_man     man-walking       stroll  left  1.0  person,road,room    man | man in a blue shirt
walking_woman   woman-walking     stroll  left  1.0  person,road,room    woman | woman in a purple shirt
surfer          woman-surfing     surf    left  1.05 surface,beach       surfing woman | purple surfer
cyclist         woman-biking      cycle   left  1.05 person,road,land    woman on a bicycle | bike rider
cartwheeler     woman-cartwheeling tumble front 1.0  person,land,room    gymnast | woman doing a cartwheel
juggler         man-juggling      stroll  front 0.95 person,room         juggling man | man in a bowler hat
fencer          fencer            stroll  left  1.0  person,room         masked fencer | fencer with a sword
skier           skier             ski     left  1.0  cold                downhill skier | skiing man
basketball_player woman-bouncing-ball run left  1.0  person,road,room    woman dribbling a ball | woman with a basketball
handball_player man-playing-handball run  left  1.0  person,land         man throwing a ball | ball thrower
swimmer         man-swimming      paddle  left  1.0  surface,under       swimming man | man in a blue cap
weightlifter    woman-lifting-weights stroll front 1.05 person,room      woman lifting weights | strong woman
dancer          dancer            dance   left  1.05 person,room,land    woman in a red dress | dancing woman
disco_dancer    man_dancing       dance   front 1.0  person,room         dancing man | man in a blue suit
rower           man-rowing-boat   paddle  right 1.05 surface             man in a green boat | man rowing a boat
jockey          horse_racing      gallop  left  1.15 land,farm           horse rider | jockey on a horse
wheelchair_racer man_in_manual_wheelchair drive left 1.0 person,road,room man in a wheelchair | wheelchair user
mermaid         mermaid           swim    front 1.0  under,surface       mermaid with a green tail | green mermaid
fairy           fairy             flutter front 0.95 air,forest,night    winged fairy | fairy with a wand
astronaut       male-astronaut    float   front 0.95 space               spaceman | astronaut in a white suit
ninja           ninja             stroll  front 0.95 night,road,person   masked ninja | ninja in black
wizard          mage              stroll  front 1.0  night,forest,person blue wizard | wizard with a staff
superhero       superhero         hover   front 0.95 road,air,person     masked hero | hero in a red cape
yogi            woman_in_lotus_position float front 1.0 room,land,beach  meditating woman | woman doing yoga
"""

THINGS = """
tornado         tornado           twist   front 1.1  hot,land            gray tornado | twister
fire            fire              slide   front 0.95 night,forest,hot    orange fire | burning flame
ferris_wheel    ferris_wheel      slide   front 1.1  road,person         big wheel | yellow ferris wheel
fountain        fountain          slide   front 1.0  road,person         white fountain | water fountain
snowman         snowman_without_snow hop  front 1.0  cold                snowman with a blue scarf | cheerful snowman
christmas_tree  christmas_tree    hop     front 1.05 cold,room,forest    decorated tree | decorated christmas tree
hourglass       hourglass         hop     front 0.95 room                sand timer | hourglass with yellow sand
comet           comet             blast   225   1.0  space,night         red comet | blazing comet
planet          ringed_planet     float   front 1.0  space               ringed planet | orange planet
sun             sun_with_face     float   front 0.95 air                 smiling sun | orange sun
star            star2             float   front 0.9  night,space         yellow star | shining star
moon            full_moon_with_face float front 0.95 night,space         smiling moon | yellow moon
rain_cloud      rain_cloud        float   front 1.0  air,road            raining cloud | purple cloud
teddy_bear      teddy_bear        hop     front 0.95 room                brown teddy bear | toy bear
alarm_clock     alarm_clock       hop     front 0.9  room                red alarm clock | ringing clock
pumpkin         jack_o_lantern    bounce  front 0.9  farm,night          orange pumpkin | laughing pumpkin
ghost           ghost             hover   front 0.95 night,room          white ghost | little ghost
robot           robot_face        hover   front 0.9  road,room,space     white robot | robot head
space_invader   space_invader     hover   front 0.9  space               purple space invader | purple monster
birthday_cake   birthday          slide   front 0.95 room                cake | cake with candles
heart           heart             float   front 0.85 room                red heart | beating heart
crystal_ball    crystal_ball      roll    front 0.9  room,night          purple crystal ball | magic ball
"""


@dataclass(frozen=True)
class Character:
    """One member of the cast."""

    name: str
    """Canonical name, unique, lower case, for example "black cat"."""
    emoji: str
    """Short name of the emoji that the art comes from."""
    kind: str
    """"animal", "vehicle", "person" or "thing"."""
    gait: str
    """Key of `words.GAITS`: how it moves and which verbs describe it."""
    facing: str
    """"left", "right" or "front" in the source art; "nose" if it is turned to point where it goes."""
    nose: float
    """Angle in radians, counter-clockwise from right, of the nose in the source art ("nose" only)."""
    size: float
    """Size relative to the average character."""
    home: frozenset[str]
    """Tags of the places it belongs to."""
    nouns: tuple[str, ...]
    """Names for captions, the canonical one first."""

    @property
    def key(self) -> str:
        """File-name form of the name."""
        return self.name.replace(" ", "_")


def _parse(kind: str, table: str) -> list[Character]:
    cast = []
    for row in table.strip().splitlines():
        name, emoji, gait, facing, size, home, others = row.split(None, 6)
        name = name.replace("_", " ")
        nouns = (name, *(noun.strip() for noun in others.split("|") if noun.strip() != "-"))
        turned = facing.isdigit()
        cast.append(
            Character(
                name,
                emoji,
                kind,
                gait,
                "nose" if turned else facing,
                math.radians(int(facing)) if turned else 0.0,
                float(size),
                frozenset(home.split(",")),
                nouns,
            )
        )
    return cast


@lru_cache(maxsize=1)
def cast() -> dict[str, Character]:
    """All characters by name, in table order."""
    tables = {"animal": ANIMALS, "vehicle": VEHICLES, "person": PEOPLE, "thing": THINGS}
    return {c.name: c for kind, table in tables.items() for c in _parse(kind, table)}


def character(name: str) -> Character:
    """The character called `name` (canonical or any caption name); ValueError names the nearest one
    otherwise.
    """
    wanted = " ".join(name.lower().replace("_", " ").split())
    for c in cast().values():
        if wanted in c.nouns:
            return c
    known = [noun for c in cast().values() for noun in c.nouns]
    near = difflib.get_close_matches(wanted, known, n=1, cutoff=0.0)
    raise InputError(f"unknown Storybook character {name!r}; the nearest is {near[0]!r}")
