"""From a recipe to a trained model on disk."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from dataclasses import replace
from functools import cached_property
from pathlib import Path

import torch
from torch import Tensor, nn

from cogvideox.checkpoints.configs import OWN_FILE, read_json, read_record, read_vae, write_vae
from cogvideox.checkpoints.folder import Model, load_model, load_text, read_tokenizer, save_model, write_json
from cogvideox.checkpoints.hub import resolve
from cogvideox.checkpoints.keymaps import diffusers_vae, iter_theirs
from cogvideox.checkpoints.surgery import image_to_video
from cogvideox.checkpoints.weights import DIFFUSERS_STEM, Weights, write_weights
from cogvideox.core.errors import InputError
from cogvideox.core.files import atomic_path, same_source
from cogvideox.data.encoded import Encoded, Store
from cogvideox.data.samples import Sample
from cogvideox.data.storybook.world import VERSION
from cogvideox.diffusion.schedule import make_schedule
from cogvideox.generation.generate import Place
from cogvideox.generation.pipeline import Pipeline
from cogvideox.generation.plan import measure
from cogvideox.models.specs import ModelSpec
from cogvideox.models.text import EmbeddingCache, TextEncoder, fingerprint
from cogvideox.models.transformer.model import Transformer
from cogvideox.models.vae.autoencoder import VAE
from cogvideox.parallel.training import ALONE, Ranks, Scheme, connect
from cogvideox.training.diffusion import DiffusionTask
from cogvideox.training.encode import Encoder, load_vae, text_hash, vae_hash
from cogvideox.training.folder import begin
from cogvideox.training.judge import clips, contact_sheet
from cogvideox.training.live import View
from cogvideox.training.loop import Rates, train
from cogvideox.training.metrics import Meter, Writer
from cogvideox.training.packs import PackedBatches
from cogvideox.training.perceptual import find_perceptual
from cogvideox.training.recipe import AnyRecipe, DiffusionRecipe, NewText, StorybookData, VAERecipe
from cogvideox.training.stores import encode_storybook, live
from cogvideox.training.text import TextTask, make_tokenizer, new_t5, tokenize
from cogvideox.training.vae import VAETask

CPU = torch.device("cpu")
VALIDATED = 4  # clips of a validation
CACHE = 2**31  # bytes of the captions' embeddings kept in memory


def run_recipe(recipe: AnyRecipe, folder: Path, *, workers: int = 1, writers: Sequence[Writer] = ()) -> Path:
    """Train what the recipe describes in `folder`; resumes from the folder's checkpoint. `writers` are told
    of the run's numbers.

    A VAE ends up in `folder/vae`, a whole model in `folder/model`, as diffusers reads them; returns which.
    """
    ranks = connect(scheme(recipe))
    ranks.lead(lambda: begin(folder, recipe, sys.argv))
    if isinstance(recipe, VAERecipe):
        return run_vae(recipe, folder, workers, writers, ranks)
    return run_diffusion(recipe, folder, workers, writers, ranks)


def scheme(recipe: AnyRecipe) -> Scheme:
    """How the recipe is trained by several processes."""
    if isinstance(recipe, VAERecipe):
        return Scheme()
    asked = recipe.parallel
    return Scheme(
        shards=asked.shards,
        sequences=tuple(stage.sequence for stage in recipe.stages),
        ulysses=asked.ulysses,
        recompute=asked.recompute,
        compile=asked.compile,
    )


def run_vae(
    recipe: VAERecipe, folder: Path, workers: int, writers: Sequence[Writer], ranks: Ranks = ALONE
) -> Path:
    """Train a VAE and write it with the scale that gives its latents unit variance."""
    perceptual = find_perceptual(recipe.loss.perceptual)
    print(f"perceptual loss: {perceptual.name}", flush=True)
    if not same_source(folder / "perceptual.txt", perceptual.name):
        raise InputError(
            f"{folder} was begun with another perceptual loss than {perceptual.name}; take a new --output"
        )
    task = VAETask(
        recipe.vae,
        recipe.stages,
        recipe.loss,
        perceptual,
        seed=recipe.seed,
        adversarial=recipe.adversarial,
    )
    weights = train(
        task,
        folder,
        {"vae": recipe.optimizer, "discriminator": recipe.discriminator},
        steps=sum(stage.steps for stage in recipe.stages),
        stages=recipe.spans,
        every=recipe.every,
        workers=workers,
        writers=writers,
        ranks=ranks,
    )["vae"].ema_weights()
    ranks.lead(lambda: _write_vae(task, weights, folder / "vae"))
    return folder / "vae"


def _write_vae(task: VAETask, weights: dict[str, Tensor], folder: Path) -> None:
    scale = round(1.0 / task.latent_std(weights), 4)
    vae = VAE(replace(task.spec, scale=scale, condition_scale=scale))
    vae.load_state_dict(weights)
    with atomic_path(folder) as partial:
        tensors = iter_theirs(diffusers_vae(vae.spec), vae.state_dict(), "vae")
        write_weights(tensors, partial, DIFFUSERS_STEM, dtype=torch.bfloat16)
        write_json(partial / "config.json", write_vae(vae.spec, 128, 128))
        write_json(partial / OWN_FILE, {"record": {"perceptual": task.perceptual.name}})


def run_diffusion(
    recipe: DiffusionRecipe, folder: Path, workers: int, writers: Sequence[Writer], ranks: Ranks = ALONE
) -> Path:
    """Encode what is missing, train the text encoder, then the transformer; write the whole model."""
    parts = Parts(recipe, folder, workers, ranks)
    ranks.lead(parts.encode)
    transformer = parts.transformer()
    task = _diffusion_task(parts, transformer)
    optimizer = train(
        task,
        folder,
        {"model": recipe.optimizer},
        steps=sum(stage.steps for stage in recipe.stages),
        stages=recipe.spans,
        every=recipe.every,
        workers=workers,
        meter=Meter(ranks.size * measure(CPU, torch.bfloat16).matmul),
        writers=writers,
        ranks=ranks,
    )["model"]
    weights = optimizer.ema_weights()

    def write() -> None:
        model = assemble(parts.spec, parts.vae, parts.text, weights)
        save_model(replace(model, record={"vae": parts.vae_record}), folder / "model", dtype=torch.bfloat16)

    ranks.lead(write)
    return folder / "model"


class Parts:
    """What a training of the transformer takes from elsewhere. With stored latents and texts, the VAE and the
    text encoder are read when a validation or the final model first asks for them.
    """

    def __init__(self, recipe: DiffusionRecipe, folder: Path, workers: int, ranks: Ranks = ALONE) -> None:
        self.recipe, self.folder, self.workers, self.ranks = recipe, folder, workers, ranks
        given = resolve(recipe.vae)
        self.home = given if (given / "vae").is_dir() else None
        """The whole model that the VAE belongs to, if it is of one."""
        self.vae_home = given / "vae" if self.home else given
        self.vae_record = read_record(self.home).get("vae", {}) if self.home else read_record(given)
        """How the VAE was trained, as far as it says."""
        vae = read_vae(read_json(self.vae_home / "config.json"))
        self.spec = replace(recipe.model, vae=vae)
        self.vae_hash = vae_hash(self.vae_home, vae)
        self._check_source()

    def _check_source(self) -> None:
        """Refuse to go on in a folder whose VAE, text encoder or world was another."""
        start = self.recipe.start and fingerprint(Weights(resolve(self.recipe.start) / "text_encoder"))
        record = {"vae": self.vae_hash, "world": VERSION, "start": start}
        if not same_source(self.folder / "source.json", json.dumps(record)):
            raise InputError(f"{self.folder} was begun with another VAE, world or start; take a new --output")

    @cached_property
    def vae(self) -> VAE:
        return load_vae(self.vae_home, self.spec.vae, torch.bfloat16, CPU)

    def encode(self) -> None:
        """Leave nothing to be written when others ask for the `store`."""
        assert self.store is not None

    @cached_property
    def store(self) -> Store:
        """The samples."""
        data, seed = self.recipe.data, self.recipe.seed
        if isinstance(data, StorybookData):
            encoder = Encoder(self.spec, self.vae, None, seed)
            return encode_storybook(data.parts, data.encoded, encoder, self.vae_hash, workers=self.workers)
        if data.encoded is not None:
            home = self._text_home
            text = None if home is None else text_hash(home / "text_encoder", self.spec)
            needed = self.spec.image_conditioned
            return Encoded(data.encoded, vae=self.vae_hash, text=text, conditions=needed)
        assert data.manifest is not None
        native = (self.spec.frames, self.spec.height, self.spec.width)
        shapes = [stage.largest or native for stage in self.recipe.stages]
        return live(data.manifest, shapes, Encoder(self.spec, self.vae, None, seed))

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
            text = load_text(home / "text_encoder", home / "tokenizer", spec, torch.bfloat16, CPU)
        elif sizes is None:
            raise InputError(
                "a model needs a text encoder: give the sizes of a new one as `text`, or `start`"
            )
        else:
            text = _new_text(sizes, self.recipe, self.store.samples, self.folder, self.ranks)
        size = 2 * spec.transformer.text_length * spec.transformer.text_dim
        text.cache = EmbeddingCache(CACHE // size)
        return text

    @property
    def needed_text(self) -> TextEncoder | None:
        """None where all embeddings are stored."""
        stored = isinstance(self.store, Encoded) and self.store.has_texts
        return None if stored and self.spec.unconditional == "zeros" else self.text

    def transformer(self) -> Transformer:
        """A fresh one, or that of the model to start from; with channels for an image if those are new."""
        spec, start = self.spec, self.recipe.start
        if start is None:
            torch.manual_seed(self.recipe.seed)  # initial weights, the one thing drawn from torch's generator
            fresh = Transformer(spec.transformer, spec.position_policy)
            _initialise(fresh)
            return fresh.to(torch.bfloat16)
        model = load_model(start, dtype="bf16")
        if vae_hash(resolve(start) / "vae", model.spec.vae) != self.vae_hash:
            raise InputError(f"{start} was trained on latents of another VAE than the recipe's")
        begun = model.transformer
        if begun.spec != spec.transformer:
            begun = image_to_video(begun, spec.transformer)
        return begun.requires_grad_(True)


def _diffusion_task(parts: Parts, transformer: Transformer) -> DiffusionTask:
    """The task, whose validation makes clips with the averaged weights."""
    recipe, spec = parts.recipe, parts.spec
    stages = tuple(stage.loaded for stage in recipe.stages)
    batches = PackedBatches(
        parts.store,
        spec,
        stages,
        recipe.objective,
        seed=recipe.seed,
        held=recipe.data.held,
        rank=parts.ranks.rank,
        ranks=parts.ranks.size,
    )

    def judge(weights: dict[str, Tensor], where: Path, step: int) -> None:
        pipe = Pipeline(assemble(spec, parts.vae, parts.text, weights), Place(CPU, torch.bfloat16))
        if isinstance(recipe.data, StorybookData):
            contact_sheet(pipe, where / f"{step:06d}.png", seed=recipe.seed, prompts=10, steps=16)
        else:
            chosen = batches.held[:VALIDATED]
            clips(pipe, parts.store, chosen, where / f"{step:06d}", seed=recipe.seed)

    schedule = make_schedule(spec.snr_shift)
    return DiffusionTask(transformer, spec, parts.needed_text, batches, schedule, judge=judge)


def assemble(spec: ModelSpec, vae: VAE, text: TextEncoder, weights: dict[str, Tensor]) -> Model:
    """A model in bf16 with the given weights of its transformer."""
    transformer = Transformer(spec.transformer, spec.position_policy)
    transformer.load_state_dict(weights)
    transformer.to(torch.bfloat16).requires_grad_(False).eval()
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


def _new_text(
    sizes: NewText, recipe: DiffusionRecipe, samples: Sequence[Sample], folder: Path, ranks: Ranks
) -> TextEncoder:
    """A text encoder trained by itself in `folder/text`; from then on it is frozen, as T5 is in the paper."""
    # Samples of other shapes show some of the same clips: each counts once.
    clips = list({tuple(sample.captions): sample.captions for sample in samples}.values())
    ranks.lead(lambda: _make_tokenizer(sizes, clips, folder / "tokenizer"))
    tokenizer = read_tokenizer(folder / "tokenizer")
    length, width = recipe.model.transformer.text_length, recipe.model.transformer.text_dim
    model = new_t5(sizes, width, len(tokenizer))
    for kind in dict(clips[0]):
        told = [words for captions in clips[:400] for name, words in captions if name == kind]
        cut = [len(tokenizer(words)["input_ids"]) > length for words in told]
        print(f"text: {sum(cut) / len(cut):.0%} of {kind} captions are longer than {length} tokens, and cut")
    print(f"text: learning {len(clips)} clips' captions", flush=True)
    captions = [[words for _, words in some] for some in clips]
    task = TextTask(model, lambda texts: tokenize(tokenizer, texts, length), captions, seed=recipe.seed)
    rates = {"model": Rates(matrix_lr=0.0, lr=1e-3, decay_from=0.2)}
    train(
        task,
        folder / "text",
        rates,
        steps=sizes.steps,
        every=recipe.every,
        workers=0,
        writers=[View()],
        ranks=ranks.replicas(),
    )
    for parameter in model.requires_grad_(False).parameters():
        parameter.data = parameter.data.bfloat16()
    return TextEncoder(tokenizer, model, length)


def _make_tokenizer(sizes: NewText, clips: Sequence[Sequence[tuple[str, str]]], home: Path) -> None:
    """The tokenizer of the run, made from the captions of its clips the first time."""
    if not home.is_dir():
        words = (words for captions in clips for _, words in captions)
        with atomic_path(home) as partial:
            make_tokenizer(words, sizes.vocabulary).save_pretrained(partial)
