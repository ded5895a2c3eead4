"""What a training of the transformer takes from elsewhere: VAE, text encoder, samples, first weights."""

from __future__ import annotations

import copy
import json
import sys
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import cache, cached_property
from pathlib import Path

import torch
from torch import Tensor, nn
from transformers import T5EncoderModel

from cogvideox.checkpoints.configs import read_json, read_record, read_vae
from cogvideox.checkpoints.folder import Model, load_model, load_text, read_spec, read_tokenizer
from cogvideox.checkpoints.hub import resolve
from cogvideox.checkpoints.surgery import image_to_video
from cogvideox.checkpoints.weights import Weights
from cogvideox.core.errors import InputError
from cogvideox.core.files import atomic_path, same_source
from cogvideox.data.encoded import Encoded, Store
from cogvideox.data.samples import Sample
from cogvideox.data.storybook.clip import Clip
from cogvideox.data.storybook.rows import VARIANTS
from cogvideox.data.storybook.siblings import siblings
from cogvideox.data.storybook.world import VERSION, World
from cogvideox.diffusion.schedule import make_schedule
from cogvideox.generation.generate import Place
from cogvideox.generation.plan import measure
from cogvideox.models.specs import ModelSpec
from cogvideox.models.text import EmbeddingCache, TextEncoder, fingerprint
from cogvideox.models.transformer.model import Transformer
from cogvideox.models.vae.autoencoder import VAE
from cogvideox.training.encode import Encoder, Live, load_vae, text_hash, vae_hash
from cogvideox.training.folder import Run
from cogvideox.training.live import View
from cogvideox.training.loop import Rates, train
from cogvideox.training.metrics import Meter
from cogvideox.training.packs import DiffusionStage, PackedBatches
from cogvideox.training.recipe import NewText, StorybookData, TransformerRecipe
from cogvideox.training.stores import encode_rows, encode_storybook, live
from cogvideox.training.stream import StreamBatches
from cogvideox.training.text import Family, TextTask, make_tokenizer, new_t5, tokenize

FAMILIES, SIBLINGS = 2000, 8
"""Of Storybook, what the text encoder learns to tell apart."""
CACHE = 2**31  # bytes of the captions' embeddings kept in memory


class Ingredients:
    """What a training of the transformer takes from elsewhere. With stored latents and texts, the VAE and the
    text encoder are read when a validation or the final model first asks for them.
    """

    def __init__(self, recipe: TransformerRecipe, run: Run) -> None:
        self.recipe, self.run = recipe, run
        given = resolve(recipe.vae)
        self.home = given if (given / "vae").is_dir() else None
        """The whole model that the VAE belongs to, if it is of one."""
        self.vae_home = given / "vae" if self.home else given
        self.vae_record = read_record(self.home).get("vae", {}) if self.home else read_record(given)
        """How the VAE was trained, as far as it says."""
        whole = self.home if self.home and (self.home / "transformer").is_dir() else None
        vae = read_spec(whole).vae if whole else read_vae(read_json(self.vae_home / "config.json"))
        last = recipe.stages[-1].positions or recipe.model.position_policy
        self.spec = replace(recipe.model, vae=vae, position_policy=last)
        """The model's as it will be written: with the VAE and the positions that it was trained with."""
        self.vae_hash = vae_hash(self.vae_home, vae)
        self._check_source()

    def _check_source(self) -> None:
        """Refuse to go on in a folder whose VAE, text encoder or world was another."""
        start = self.recipe.start and fingerprint(Weights(resolve(self.recipe.start) / "text_encoder"))
        record = {"vae": self.vae_hash, "world": VERSION, "start": start}
        if not same_source(self.run.folder / "source.json", json.dumps(record)):
            raise InputError(
                f"{self.run.folder} was begun with another VAE, world or start; take a new --output"
            )

    @property
    def _place(self) -> tuple[torch.dtype, torch.device]:
        return self.run.place.dtype, self.run.place.device

    @property
    def workers(self) -> int:
        """Processes that prepare data; none where they would encode on an accelerator."""
        encode = isinstance(self.store, Live) and self.run.place.device.type != "cpu"  # not run here: no GPU
        return 0 if encode else self.run.workers

    @property
    def stages(self) -> tuple[DiffusionStage, ...]:
        """What the loader makes of the recipe's, each with its positions."""
        own = self.recipe.model.position_policy
        return tuple(replace(s.loaded, positions=s.positions or own) for s in self.recipe.stages)

    @cached_property
    def vae(self) -> VAE:
        return load_vae(self.vae_home, self.spec.vae, *self._place)

    def encode(self) -> None:
        """Leave nothing to be written when others ask for the `store`."""
        assert self.store is not None

    @cached_property
    def stream(self) -> StreamBatches | None:
        """The rows of this process, if the recipe trains on a stream."""
        data, recipe, ranks = self.recipe.data, self.recipe, self.run.ranks
        if isinstance(data, StorybookData) or data.stream is None:
            return None
        return StreamBatches(
            data.stream,
            Encoder(self.spec, self.vae, None, recipe.seed),
            self.stages,
            recipe.objective,
            seed=recipe.seed,
            held=data.held,
            rank=ranks.rank,
            ranks=ranks.size,
        )

    @cached_property
    def store(self) -> Store:
        """The samples; of a stream, those that are near."""
        data, seed = self.recipe.data, self.recipe.seed
        if self.stream is not None:
            return self.stream.store
        if isinstance(data, StorybookData):
            encoder = Encoder(self.spec, self.vae, None, seed)
            count = sum(part.clips for part in data.parts)
            told = f"data: {count} clips in {data.encoded}; those that are missing are encoded"
            print(told, file=sys.stderr, flush=True)
            return encode_storybook(
                data.parts, data.encoded, encoder, self.vae_hash, workers=self.run.workers
            )
        if data.encoded is not None:
            home = self._text_home
            text = None if home is None else text_hash(home / "text_encoder", self.spec)
            needed = self.spec.image_conditioned
            return Encoded(data.encoded, vae=self.vae_hash, text=text, conditions=needed)
        assert data.manifest is not None
        native = (self.spec.frames, self.spec.height, self.spec.width)
        shapes = [stage.largest or native for stage in self.recipe.stages]
        encoder = Encoder(self.spec, self.vae, None, seed)
        if not data.kept:
            return live(data.manifest, shapes, encoder)
        home = self.run.folder / "encoded"
        return encode_rows(data.manifest, shapes, home, encoder, self.vae_hash, workers=self.run.workers)

    @property
    def _text_home(self) -> Path | None:
        """The model that the text encoder is from; None: it is trained in this run."""
        if self.recipe.start:
            return resolve(self.recipe.start)
        return None if self.recipe.text else self.home

    @cached_property
    def text(self) -> TextEncoder:
        """The frozen text encoder."""
        sizes, home, spec = self.recipe.text, self._text_home, self.spec
        if home is not None:
            text = load_text(home / "text_encoder", home / "tokenizer", spec, *self._place)
            if steps := self.recipe.text_steps:
                near = copy.deepcopy(text.model)
                text = _learn_text(text, steps, self.recipe, self.store.samples, self.run, near)
        elif sizes is None:
            raise InputError(
                "a model needs a text encoder: give the sizes of a new one as `text`, or `start`"
            )
        else:
            text = _new_text(sizes, self.recipe, self.store.samples, self.run)
        size = self.run.place.dtype.itemsize * spec.transformer.text_length * spec.transformer.text_dim
        text.cache = EmbeddingCache(CACHE // size)
        return text

    @property
    def needed_text(self) -> TextEncoder | None:
        """None where all embeddings are stored."""
        stored = isinstance(self.store, Encoded) and self.store.has_texts
        return None if stored and self.spec.unconditional == "zeros" else self.text

    def meter(self) -> Meter:
        """Of runs on as many machines like this one as there are processes."""
        return Meter(self.run.ranks.size * measure(self.run.place.device, self.run.place.dtype).matmul)

    def batches(self) -> PackedBatches:
        """The rows of this process."""
        if self.stream is not None:
            return self.stream
        recipe = self.recipe
        return PackedBatches(
            self.store,
            self.spec,
            self.stages,
            recipe.objective,
            seed=recipe.seed,
            held=recipe.data.held,
            rank=self.run.ranks.rank,
            ranks=self.run.ranks.size,
        )

    def transformer(self) -> Transformer:
        """A fresh one, or that of the model to start from; with channels for an image if those are new."""
        spec, start = self.spec, self.recipe.start
        if start is None:
            torch.manual_seed(self.recipe.seed)  # initial weights, the one thing drawn from torch's generator
            fresh = Transformer(spec.transformer, spec.position_policy)
            _initialise(fresh)
            return fresh.to(self.run.place.device, self.run.place.dtype)
        model = load_model(start, dtype=self.run.place.dtype, device=self.run.place.device)
        if vae_hash(resolve(start) / "vae", model.spec.vae) != self.vae_hash:
            raise InputError(f"{start} was trained on latents of another VAE than the recipe's")
        begun = model.transformer
        if begun.spec != spec.transformer:
            begun = image_to_video(begun, spec.transformer)
        return begun.requires_grad_(True)


def assemble(spec: ModelSpec, vae: VAE, text: TextEncoder, weights: dict[str, Tensor], place: Place) -> Model:
    """A model with the given weights of its transformer; the other parts stand in their place."""
    transformer = Transformer(spec.transformer, spec.position_policy)
    transformer.load_state_dict(weights)
    transformer.to(place.device, place.dtype).requires_grad_(False).eval()
    return Model(
        spec=spec,
        transformer=transformer,
        vae=vae,
        text=text,
        schedule=make_schedule(spec.snr_shift),
        source="training",
        fingerprint=fingerprint(transformer.state_dict()),
    )


def _initialise(transformer: Transformer) -> None:
    """Blocks start as the identity and the output as zero, as in DiT."""
    for name, parameter in transformer.named_parameters():
        if "modulation" in name or name.startswith("output.linear"):
            nn.init.zeros_(parameter)


def _families(
    recipe: TransformerRecipe, samples: Sequence[Sample], text: TextEncoder
) -> tuple[Callable[[int], Family], int]:
    """Captions that the text encoder must tell apart, and how many families of them there are."""
    if isinstance(recipe.data, StorybookData):
        world = World(recipe.seed)
        return cache(lambda n: [_told(clip, text) for clip in siblings(world, n, SIBLINGS)]), FAMILIES
    clips = _captions(samples)
    return (lambda n: [[words for _, words in clips[n]]]), len(clips)


def _captions(samples: Sequence[Sample]) -> list[tuple[tuple[str, str], ...]]:
    """Kinds and captions of each clip; samples of other shapes show some of the same ones."""
    return list(dict.fromkeys(tuple(sample.captions) for sample in samples))


def _told(clip: Clip, text: TextEncoder) -> list[str]:
    """Captions of a clip, without those that would be cut if there are others: what differs may be cut."""
    told = [tell(variant) for tell in (clip.short_caption, clip.dense_caption) for variant in range(VARIANTS)]
    whole = [words for words in told if text.tokens(words) <= text.length]
    return whole if len(whole) > 1 else told


def _new_text(sizes: NewText, recipe: TransformerRecipe, samples: Sequence[Sample], run: Run) -> TextEncoder:
    """A text encoder trained by itself in `folder/text`; from then on it is frozen, as T5 is in the paper."""
    home = run.folder / "tokenizer"
    clips = _captions(samples)
    run.ranks.lead(lambda: _make_tokenizer(sizes, clips, home))
    tokenizer = read_tokenizer(home)
    length, width = recipe.model.transformer.text_length, recipe.model.transformer.text_dim
    for kind in dict(clips[0]):
        told = [words for captions in clips[:400] for name, words in captions if name == kind]
        cut = [len(tokenizer(words)["input_ids"]) > length for words in told]
        print(f"text: {sum(cut) / len(cut):.0%} of {kind} captions are longer than {length} tokens, and cut")
    model = new_t5(sizes, width, len(tokenizer))
    return _learn_text(TextEncoder(tokenizer, model, length), sizes.steps, recipe, samples, run)


def _learn_text(
    text: TextEncoder,
    steps: int,
    recipe: TransformerRecipe,
    samples: Sequence[Sample],
    run: Run,
    near: T5EncoderModel | None = None,
) -> TextEncoder:
    """The encoder, after so many steps of telling captions apart in `folder/text`; see `TextTask`."""
    family, families = _families(recipe, samples, text)
    print(f"text: learning the captions of {families} families of clips", flush=True)
    model = text.model.float().requires_grad_(True)
    task = TextTask(
        model,
        lambda told: tokenize(text.tokenizer, told, text.length),
        family,
        families,
        run.place,
        seed=recipe.seed,
        near=near,
    )
    rates = {"model": Rates(matrix_lr=0.0, lr=1e-3, decay_from=0.2)}
    train(
        task,
        run.folder / "text",
        rates,
        steps=steps,
        every=recipe.every,
        workers=0,
        writers=[View()],
        ranks=run.ranks.replicas(),
    )
    for parameter in model.requires_grad_(False).parameters():
        parameter.data = parameter.data.bfloat16().to(run.place.dtype)  # what will be stored, and no more
    return TextEncoder(text.tokenizer, model, text.length)


def _make_tokenizer(sizes: NewText, clips: Sequence[Sequence[tuple[str, str]]], home: Path) -> None:
    """The tokenizer of the run, made from the captions of its clips the first time."""
    if not home.is_dir():
        words = (words for captions in clips for _, words in captions)
        with atomic_path(home) as partial:
            make_tokenizer(words, sizes.vocabulary).save_pretrained(partial)
