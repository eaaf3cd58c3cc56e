"""What `test_sharded.py` runs in processes of their own: ZeRO and FSDP2 on a CPU.

python tests/sharded_cases.py zero FOLDER NAME     under `accelerate launch`
python tests/sharded_cases.py fsdp2 FOLDER NAME    under torchrun
"""

import json
import os
import sys
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import seam_cases as cases
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from emoreg.losses.anchors import MeaningAnchor, ReferenceKL
from emoreg.losses.presets import Terms
from emoreg.residual.batches import read_stream
from emoreg.training.attach import attach
from emoreg.training.checks import check_launch
from emoreg.training.gradients import obstacle
from emoreg.training.outcomes.columns import Extras
from emoreg.training.reference import Reference
from emoreg.training.regularizer import Regularizer
from emoreg.training.watching.monitor import Monitor
from emoreg.training.world import World
from emoreg.vectors.emotion_vectors import EmotionVectors


@dataclass(frozen=True, kw_only=True)
class Job:
    """One run of the trainer, in one process or sharded."""

    weights: dict[str, float]
    changes: dict[str, Any]
    peft: bool = True
    early: bool = False
    """Shard the weights while they are loaded, under ZeRO-3."""
    resume: str = ""


def write_job(folder: Path, name: str, job: Job) -> None:
    """Leave the job where the program looks for it."""
    (folder / f"{name}.json").write_text(json.dumps(asdict(job)), encoding="utf-8")


def read_terms(folder: Path, weights: dict[str, float]) -> tuple[Terms, Reference, Any]:
    """The default terms; anchors run on all their passages, so on any process alike."""
    vectors = EmotionVectors.load(folder / "vectors.safetensors")
    reference = Reference.load(folder / "reference.safetensors")
    terms = cases.make_terms(vectors, reference, **weights)
    for term in terms:
        if isinstance(term, MeaningAnchor | ReferenceKL):
            term.every, term.passages = 2, 8
    return terms, reference, vectors


def run_trainer(folder: Path, name: str, job: Job) -> dict[str, Any] | None:
    """Train and return what is compared, on the main process."""
    terms, reference, vectors = read_terms(folder, job.weights)
    source = str(folder / "model")
    loaded: Any = source if job.early else AutoModelForCausalLM.from_pretrained(source)
    trainer: Any = cases.make_sft(
        loaded,
        AutoTokenizer.from_pretrained(source),
        folder / name,
        rows=cases.make_rows(16),
        peft=cases.adapter() if job.peft else None,
        **job.changes,
    )
    plugin = trainer.accelerator.state.deepspeed_plugin
    if plugin is not None:  # ZeRO-3 leaves small weights whole, and these all are
        zero = plugin.deepspeed_config["zero_optimization"]
        zero["stage3_param_persistence_threshold"] = 0
    start = whole_weights(trainer)
    early = any(p.numel() == 0 for p in trainer.model.parameters())
    trainer = attach(
        trainer,
        monitor=Monitor(vectors),
        terms=terms,
        outcome="failed",
        reference=reference,
    )
    trainer.train(resume_from_checkpoint=job.resume or None)
    sharded = any(p.numel() == 0 for p in trainer.model.parameters())
    after = whole_weights(trainer)
    trainer.save_model(str(folder / name / "saved"))
    if not trainer.is_world_process_zero():
        return None
    return {
        "log": trainer.state.log_history,
        "start": start,
        "weights": after,
        "state": trainer.emotions.regularizer.state_dict(),
        "kind": trainer.accelerator.distributed_type.value,
        "processes": trainer.accelerator.num_processes,
        "early": early,
        "sharded": sharded,
        "read": _message(lambda: read(trainer.model)),
        "obstacle": obstacle(trainer.model_wrapped),
        "again": _message(lambda: check_launch(trainer, probed=False)),
    }


def whole_weights(trainer: Any) -> dict[str, torch.Tensor]:
    """A copy of all parameters, gathered where ZeRO-3 has them sharded."""
    parameters = list(trainer.model.parameters())
    gathered: Any = nullcontext()
    if any(hasattr(parameter, "ds_id") for parameter in parameters):
        import deepspeed  # pyright: ignore

        gathered = deepspeed.zero.GatheredParameters(parameters)
    with gathered:
        return cases.weights(trainer)


def read(model: torch.nn.Module) -> None:
    """Run a truncated forward."""
    read_stream(model, [[1, 2, 3]], [1], lambda *_: None, quiet=True)


def _message(call: Callable[[], object]) -> str:
    try:
        call()
    except (RuntimeError, ValueError) as error:
        return str(error)
    return ""


FSDP2_CASES = {
    "full": {"peft": False, "checkpoint": False},
    "checkpointed": {"peft": False, "checkpoint": True},
    "lora": {"peft": True, "checkpoint": False},
}


def run_loop(
    folder: Path,
    weights: dict[str, float],
    *,
    peft: bool,
    checkpoint: bool,
    steps: int = 3,
) -> dict[str, Any]:
    """Train in a loop of its own, sharded if there are processes to shard over.

    Gradients of each step are whole; 8 rows are split over the processes.
    """
    model, regularizer, examples = build(folder, weights, peft=peft)
    world = regularizer.world
    if checkpoint:
        model.gradient_checkpointing_enable({"use_reentrant": False})
    if world.processes > 1:
        shard(model)
    trained = {n: p for n, p in model.named_parameters() if p.requires_grad}
    optimizer = torch.optim.SGD(trained.values(), lr=1e-3)
    losses, gradients = [], []
    for step in range(steps):
        own = examples[world.process :: world.processes]
        loss, added = task(model, regularizer, own)
        losses.append(float(world.reduce(loss.detach())))
        # Gradients are averaged over processes, and this loss is a part of a sum.
        (world.processes * loss + added).backward()
        regularizer.auxiliary(model, step=step, backward=lambda loss: loss.backward())
        gradients.append({name: _full(p.grad) for name, p in trained.items()})
        optimizer.step()
        optimizer.zero_grad()
    return {
        "losses": losses,
        "gradients": gradients,
        "metrics": regularizer.metrics("train", step=steps),
        "state": regularizer.state_dict(),
        "processes": world.processes,
        "read": _message(lambda: read(model)),
    }


def build(
    folder: Path, weights: dict[str, float], *, peft: bool
) -> tuple[Any, Regularizer, list[Any]]:
    """The model with the forward that TRL puts in, its regularizer, and rows."""
    terms, reference, vectors = read_terms(folder, weights)
    source = str(folder / "model")
    world = _world()
    tokenizer = AutoTokenizer.from_pretrained(source)
    trainer: Any = cases.make_sft(
        AutoModelForCausalLM.from_pretrained(source),
        tokenizer,
        folder / "unused",
        rows=cases.make_rows(8),
        peft=cases.adapter() if peft else None,
    )
    regularizer = Regularizer(
        trainer.model.train(),
        tokenizer=tokenizer,
        monitor=Monitor(vectors),
        terms=tuple(terms),
        reference=reference,
        world=world,
        quiet=True,
    )
    return trainer.model, regularizer, list(trainer.train_dataset)


def task(
    model: Any, regularizer: Regularizer, examples: list[Any]
) -> tuple[torch.Tensor, torch.Tensor]:
    """This process's part of the loss, which is a mean over all tokens, and terms."""
    batch = cases.collate(examples)
    ids, reduce = batch["input_ids"], regularizer.world.reduce
    failed = torch.nn.utils.rnn.pad_sequence(
        [_failures(example["failed"]) for example in examples],
        batch_first=True,
        padding_value=float("nan"),
    )
    tokens = reduce((batch["labels"][:, 1:] != -100).sum())
    with regularizer.reading(model, ids, training=True) as captured:
        out = model(**batch, fused_lm_head=True, num_items_in_batch=tokens)
        streams = regularizer.streams(captured, ids, training=True)
    extras = Extras(outcomes=failed, reference=None)
    added = regularizer.added(
        streams, ids, batch["attention_mask"], extras, training=True
    )
    assert added is not None
    return out.loss, added


def shard(model: torch.nn.Module) -> None:
    """Shard as accelerate 1.15 does: blocks, embeddings, norm with head, the rest."""
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    from emoreg.residual.layers import backbone, decoder_layers, unwrapped

    mesh = init_device_mesh("cpu", (torch.distributed.get_world_size(),))
    for block in decoder_layers(model):
        fully_shard(block, mesh=mesh)
    inner: Any = unwrapped(model)
    stack: Any = backbone(model)
    fully_shard(inner.get_input_embeddings(), mesh=mesh)
    tail = [stack.norm, inner.get_output_embeddings()]
    fully_shard(tail, mesh=mesh, reshard_after_forward=False)
    fully_shard(model, mesh=mesh)


def _world() -> World:
    if "RANK" not in os.environ:
        return World(device=torch.device("cpu"))
    if not torch.distributed.is_initialized():
        torch.distributed.init_process_group("gloo")

    def reduce(x: torch.Tensor) -> torch.Tensor:
        total = x.clone()
        torch.distributed.all_reduce(total)
        return total

    return World(
        device=torch.device("cpu"),
        process=torch.distributed.get_rank(),
        processes=torch.distributed.get_world_size(),
        reduce=reduce,
    )


def _failures(failed: list[float | None]) -> torch.Tensor:
    return torch.tensor([float("nan") if x is None else x for x in failed])


def _full(gradient: Any) -> torch.Tensor:
    whole = gradient.full_tensor() if hasattr(gradient, "full_tensor") else gradient
    return whole.detach().clone()


def main(kind: str, folder: Path, name: str) -> None:
    """Run the job of that name; the main process writes what came of it."""
    torch.set_num_threads(1)
    job = Job(**json.loads((folder / f"{name}.json").read_text(encoding="utf-8")))
    if kind == "zero":
        # In the place of the file's `zero3_init_flag`.
        os.environ["ACCELERATE_DEEPSPEED_ZERO3_INIT"] = str(job.early).lower()
        result = run_trainer(folder, name, job)
    else:
        result = {
            case: run_loop(folder, job.weights, **settings)
            for case, settings in FSDP2_CASES.items()
        }
    if int(os.environ["RANK"]) == 0:
        torch.save(result, folder / f"{name}.pt")


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]), sys.argv[3])
