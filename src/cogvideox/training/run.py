"""From a recipe to a trained model on disk."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator, Sequence
from dataclasses import replace
from itertools import chain
from pathlib import Path

import torch
from torch import Tensor, nn
from transformers import PreTrainedTokenizerBase

from cogvideox.checkpoints.configs import read_json, read_vae, write_vae
from cogvideox.checkpoints.folder import Model, load_model, read_tokenizer, save_model, write_json
from cogvideox.checkpoints.hub import resolve
from cogvideox.checkpoints.keymaps import diffusers_vae, iter_theirs
from cogvideox.checkpoints.weights import DIFFUSERS_STEM, Weights, build, write_weights
from cogvideox.core.errors import InputError
from cogvideox.core.files import atomic_path, same_source
from cogvideox.data.storybook.world import VERSION
from cogvideox.diffusion.schedule import make_schedule
from cogvideox.generation.generate import Place
from cogvideox.generation.pipeline import Pipeline
from cogvideox.generation.plan import measure
from cogvideox.models.specs import ModelSpec
from cogvideox.models.text import EmbeddingCache, TextEncoder, fingerprint
from cogvideox.models.transformer.model import Transformer
from cogvideox.models.vae.autoencoder import VAE
from cogvideox.training.diffusion import DiffusionBatches, DiffusionStage, DiffusionTask
from cogvideox.training.folder import begin
from cogvideox.training.judge import JudgeTask, judge_spec, write_judge
from cogvideox.training.latents import CAPTIONS, LatentStore, encode_bucket
from cogvideox.training.live import View
from cogvideox.training.loop import Rates, train
from cogvideox.training.metrics import Meter, Writer
from cogvideox.training.recipe import (
    AnyRecipe,
    DiffusionRecipe,
    JudgeRecipe,
    NewText,
    StorybookData,
    VAERecipe,
)
from cogvideox.training.sheet import contact_sheet
from cogvideox.training.text import TextTask, make_tokenizer, new_t5, tokenize
from cogvideox.training.vae import VAETask

CPU = torch.device("cpu")
CACHE = 2**31  # bytes of the captions' embeddings kept in memory


def run_recipe(recipe: AnyRecipe, folder: Path, *, workers: int = 1, writers: Sequence[Writer] = ()) -> Path:
    """Train what the recipe describes in `folder`; resumes from the folder's checkpoint. `writers` are told
    of the run's numbers.

    A VAE ends up in `folder/vae`, a whole model in `folder/model`, as diffusers reads them, a judge in
    `folder/judge`; returns which.
    """
    begin(folder, recipe, sys.argv)
    if isinstance(recipe, VAERecipe):
        return run_vae(recipe, folder, workers, writers)
    if isinstance(recipe, JudgeRecipe):
        return run_judge(recipe, folder, workers, writers)
    return run_diffusion(recipe, folder, workers, writers)


def run_vae(recipe: VAERecipe, folder: Path, workers: int, writers: Sequence[Writer]) -> Path:
    """Train a VAE and write it with the scale that gives its latents unit variance."""
    task = VAETask(recipe.vae, recipe.stages, seed=recipe.seed, **recipe.loss.model_dump())
    optimizer = train(
        task,
        folder,
        {"model": recipe.optimizer},
        steps=sum(stage.steps for stage in recipe.stages),
        stages=recipe.spans,
        every=recipe.every,
        workers=workers,
        writers=writers,
    )["model"]
    scale = round(1.0 / task.latent_std(optimizer.ema_weights()), 4)
    vae = VAE(replace(recipe.vae, scale=scale, condition_scale=scale))
    vae.load_state_dict(optimizer.ema_weights())
    with atomic_path(folder / "vae") as partial:
        tensors = iter_theirs(diffusers_vae(vae.spec), vae.state_dict(), "vae")
        write_weights(tensors, partial, DIFFUSERS_STEM, dtype=torch.bfloat16)
        write_json(partial / "config.json", write_vae(vae.spec, 128, 128))
    return folder / "vae"


def run_judge(recipe: JudgeRecipe, folder: Path, workers: int, writers: Sequence[Writer]) -> Path:
    """Train a judge and write it with the shares of its right answers about true renders."""
    task = JudgeTask(judge_spec(), recipe.stages, seed=recipe.seed)
    optimizer = train(
        task,
        folder,
        {"model": recipe.optimizer},
        steps=sum(stage.steps for stage in recipe.stages),
        stages=recipe.spans,
        every=recipe.every,
        workers=workers,
        writers=writers,
    )["model"]
    task.model.load_state_dict(optimizer.ema_weights())
    write_judge(task.model.eval(), folder / "judge", recipe.seed)
    return folder / "judge"


def run_diffusion(recipe: DiffusionRecipe, folder: Path, workers: int, writers: Sequence[Writer]) -> Path:
    """Encode what is missing, train the text encoder, then the transformer; write the whole model."""
    data = recipe.data
    if not isinstance(data, StorybookData):
        raise InputError("this version trains on Storybook's clips alone: `data` needs `buckets`")
    weights = Weights(Path(recipe.vae))
    made_by = fingerprint(weights)
    _check_source(recipe, data, folder, made_by)
    vae_spec = read_vae(read_json(Path(recipe.vae) / "config.json"))
    vae = build(lambda: VAE(vae_spec), diffusers_vae(vae_spec), weights, recipe.vae, torch.bfloat16, CPU)
    for bucket in data.buckets:
        encode_bucket(vae, bucket, data.latents, seed=recipe.seed, fingerprint=made_by, workers=workers)
    spec = replace(recipe.model, vae=vae_spec)
    if recipe.start:
        transformer, text = _begun(recipe.start, spec, vae)
    else:
        transformer, text = _fresh(recipe, data, folder, spec)
    size = 2 * spec.transformer.text_length * spec.transformer.text_dim
    text.cache = EmbeddingCache(CACHE // size)
    task = _diffusion_task(recipe, data, spec, transformer, text, vae)
    optimizer = train(
        task,
        folder,
        {"model": recipe.optimizer},
        steps=sum(stage.steps for stage in recipe.stages),
        stages=recipe.spans,
        every=recipe.every,
        workers=workers,
        meter=Meter(measure(CPU, torch.bfloat16).matmul),
        writers=writers,
    )["model"]
    save_model(assemble(spec, vae, text, optimizer.ema_weights()), folder / "model", dtype=torch.bfloat16)
    return folder / "model"


def _diffusion_task(
    recipe: DiffusionRecipe,
    data: StorybookData,
    spec: ModelSpec,
    transformer: Transformer,
    text: TextEncoder,
    vae: VAE,
) -> DiffusionTask:
    """The task, whose validation is a sheet of clips that the averaged weights make."""
    asked = recipe.objective

    def judge(weights: dict[str, Tensor], where: Path, step: int) -> None:
        pipe = Pipeline(assemble(spec, vae, text, weights), Place(CPU, torch.bfloat16))
        contact_sheet(pipe, where / f"{step:06d}.png", seed=recipe.seed, prompts=10, steps=16)

    stages = tuple(
        DiffusionStage(steps=stage.steps, mix={name: int(count) for name, count in stage.mix.items()})
        for stage in recipe.stages
    )
    batches = DiffusionBatches(
        stages, data.buckets, data.latents, seed=recipe.seed, known=asked.known, dense=data.dense
    )
    return DiffusionTask(
        transformer,
        text,
        batches,
        make_schedule(spec.snr_shift),
        seed=recipe.seed,
        drop_text=asked.drop_text,
        subject_weight=asked.subject_weight,
        judge=judge,
    )


def _fresh(
    recipe: DiffusionRecipe, data: StorybookData, folder: Path, spec: ModelSpec
) -> tuple[Transformer, TextEncoder]:
    """An untrained transformer, and a text encoder trained by itself."""
    if recipe.text is None:
        raise InputError(
            "a new model needs `text`, the sizes of its text encoder, or a model to `start` from"
        )
    tokenizer = _tokenizer(recipe.text, data, recipe.seed, folder)
    torch.manual_seed(recipe.seed)  # initial weights, the one thing drawn from torch's generator
    transformer = Transformer(spec.transformer, spec.position_policy)
    _initialise(transformer)
    where = folder / "text"
    return transformer.to(torch.bfloat16), _text_encoder(recipe.text, data, recipe, tokenizer, where)


def _begun(start: str, spec: ModelSpec, vae: VAE) -> tuple[Transformer, TextEncoder]:
    """The transformer and the text encoder of a model that has the sizes and the VAE of the recipe."""
    model = load_model(start, dtype="bf16")
    if model.spec.transformer != spec.transformer:
        raise InputError(f"{start} has another transformer than the recipe: {model.spec.transformer}")
    if fingerprint(model.vae.state_dict()) != fingerprint(vae.state_dict()):
        raise InputError(f"{start} was trained on latents of another VAE than the recipe's")
    return model.transformer.requires_grad_(True), model.text


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


def _check_source(recipe: DiffusionRecipe, data: StorybookData, folder: Path, vae: str) -> None:
    """Refuse to go on in a folder whose tokenizer, text encoder and latents were others."""
    text, buckets = recipe.text and recipe.text.model_dump(), [(b.name, b.clips) for b in data.buckets]
    sizes = (recipe.model.transformer.text_dim, recipe.model.transformer.text_length)
    record = {"vae": vae, "seed": recipe.seed, "world": VERSION, "text": text, "sizes": sizes}
    start = recipe.start and fingerprint(Weights(resolve(recipe.start) / "text_encoder"))
    record |= {"buckets": buckets, "start": start}
    if not same_source(folder / "source.json", json.dumps(record)):
        raise InputError(
            f"{folder} was begun with another VAE, seed or text encoder or other buckets; take a new --output"
        )


def _text_encoder(
    sizes: NewText,
    data: StorybookData,
    recipe: DiffusionRecipe,
    tokenizer: PreTrainedTokenizerBase,
    folder: Path,
) -> TextEncoder:
    """A text encoder trained by itself in `folder`; from then on it is frozen, as T5 is in the paper."""
    length, width = recipe.model.transformer.text_length, recipe.model.transformer.text_dim
    model = new_t5(sizes, width, len(tokenizer))
    # Buckets of other shapes hold some of the same clips: each counts once.
    captions = list(dict.fromkeys(map(tuple, _captions(data, recipe.seed))))
    told = [tokenizer(list(some))["input_ids"] for some in captions[:400]]
    for kind, which in (("short", slice(0, CAPTIONS)), ("dense", slice(CAPTIONS, None))):
        cut = [len(ids) > length for some in told for ids in some[which]]
        print(f"text: {sum(cut) / len(cut):.0%} of {kind} captions are longer than {length} tokens, and cut")
    print(f"text: learning {len(captions)} clips' captions", flush=True)
    task = TextTask(model, lambda captions: tokenize(tokenizer, captions, length), captions, seed=recipe.seed)
    rates = {"model": Rates(matrix_lr=0.0, lr=1e-3, decay_from=0.2)}
    train(task, folder, rates, steps=sizes.steps, every=recipe.every, workers=0, writers=[View()])
    for parameter in model.requires_grad_(False).parameters():
        parameter.data = parameter.data.bfloat16()
    return TextEncoder(tokenizer, model, length)


def _tokenizer(sizes: NewText, data: StorybookData, seed: int, folder: Path) -> PreTrainedTokenizerBase:
    """The tokenizer of the run, made from captions of all its buckets the first time."""
    home = folder / "tokenizer"
    if not home.is_dir():
        with atomic_path(home) as partial:
            captions = chain.from_iterable(_captions(data, seed))
            make_tokenizer(captions, sizes.vocabulary).save_pretrained(partial)
    return read_tokenizer(home)


def _captions(data: StorybookData, seed: int, count: int = 4000) -> Iterator[list[str]]:
    """Those of each clip, of up to `count` clips of a bucket."""
    for bucket in data.buckets:
        store = LatentStore(bucket, data.latents, seed)
        for index in range(min(count, len(store))):
            yield store.captions(index)
