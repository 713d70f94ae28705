"""One training on one process or on many: the few things that differ.

``World`` is a process alone, on a CPU or a GPU. ``Sharded`` is one of several, started by ``accelerate
launch`` (or torchrun), that share one student through FSDP2; ``Engine`` shares it through DeepSpeed. Each
micro-batch is one process's own, whatever their number, so that a method sees the same micro-batches as
on one process, and the sum of their gradients is the same step.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from datetime import timedelta
from functools import cache
from pathlib import Path
from typing import Any, TypeVar

import torch
from filelock import FileLock
from torch import Tensor, nn

from harness import launch
from harness.cells import Lora
from harness.models import LoadedModel, add_lora, load, trainable
from harness.saving import (
    forget_shards,
    intact_shards,
    keep_latest,
    load_checkpoint,
    load_shards,
    save_checkpoint,
    save_shards,
)

T = TypeVar("T")
R = TypeVar("R")

#: Processes wait so long for each other: one may score programs while the others have nothing to do.
PATIENCE = timedelta(hours=12)

Computed = tuple[Tensor, dict[str, Tensor]]  #: a loss, and its named terms


class Whole(nn.Module):
    """The student and the parts of its method. Inside a call of it all of their weights are whole.

    That is the point: a loss needs the student's head and embedding outside of the layers that hold them.
    """

    def __init__(self, lm: nn.Module, parts: nn.Module | None) -> None:
        super().__init__()
        self.lm, self.parts = lm, parts

    def forward(self, compute: Callable[[], Computed]) -> Computed:
        """What ``compute`` returns."""
        return compute()


class World:
    """A process alone. The methods are what a process of several does in another way."""

    rank, size = 0, 1

    def __init__(self, device: str | torch.device = "cpu") -> None:
        self.device = torch.device(device)

    @property
    def main(self) -> bool:
        """Whether this process speaks and writes for all."""
        return self.rank == 0

    # work that the processes share

    def spread(self, items: Sequence[T], work: Callable[[Sequence[T]], list[R]]) -> list[R]:
        """One result for each item, from wherever it was made."""
        return work(items)

    def told(self, make: Callable[[], T]) -> T:
        """What ``make`` gives on the main process, on all of them."""
        return make()

    @contextmanager
    def locked(self, target: Path) -> Iterator[None]:
        """Keep other commands from making ``target``; the main process holds the lock for all."""
        target.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(f"{target}.lock"):
            yield

    def gathered(self, value: T) -> list[T]:
        """Every process's value, by rank."""
        return [value]

    # models

    def place(self, model: LoadedModel) -> LoadedModel:
        """A model that is read or decoded, whole on this process's device."""
        model.lm.to(self.device)
        return model

    def reader(self, model: LoadedModel) -> LoadedModel:
        """A teacher that all processes read with at the same moments."""
        return self.place(model)

    def mirror(self, student: LoadedModel, lora: Lora | None) -> Callable[[], LoadedModel]:
        """What gives the student as it is at each call, whole, with its adapters; alone, the very same.

        All processes call it together. It is one copy that is brought up to date.
        """
        return lambda: student

    # training

    def prepare(
        self, whole: Whole, optimizer: Callable[[], torch.optim.Optimizer], seed: int, limit: float
    ) -> tuple[Callable[..., Computed], torch.optim.Optimizer]:
        """What runs a loss, and the optimiser of its weights; ``limit`` is what ``clip`` will be given."""
        whole.to(self.device)
        return whole, optimizer()

    def shares(self, micros: Sequence[T]) -> Iterator[tuple[T, bool]]:
        """The micro-batches of a step that are this process's, and whether each counts.

        All processes get equally many, so that they gather weights together; what one gets beyond its
        share does not count.
        """
        return ((micro, True) for micro in micros)

    def backward(self, total: Tensor, counts: bool, last: bool) -> None:
        """Add a loss's gradient to those of all processes; ``last`` in this step, or not."""
        total.backward()  # type: ignore[no-untyped-call]

    def clip(self, parameters: list[nn.Parameter], limit: float) -> float:
        """Limit the norm of the gradient of all; the norm as it was."""
        norm = nn.utils.clip_grad_norm_(parameters, limit)
        return float(whole_tensor(norm).item())

    def step(self, optimizer: torch.optim.Optimizer) -> None:
        """Move the weights, and forget the gradients."""
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    def summed(self, total: float, terms: dict[str, Tensor]) -> tuple[float, dict[str, Tensor]]:
        """Loss and terms of a step over all processes."""
        return total, terms

    # checkpoints

    def save(self, file: Path, whole: Any, optimizer: torch.optim.Optimizer, rest: dict[str, Any]) -> None:
        """Keep the training as it is now; ``rest`` is plain data."""
        names = {name for name, p in whole.lm.named_parameters() if p.requires_grad}
        student = {name: value for name, value in whole.lm.state_dict().items() if name in names}
        parts = whole.parts.state_dict() if whole.parts is not None else {}
        state = {"student": student, "parts": parts, "optimizer": optimizer.state_dict()}
        save_checkpoint(file, {**state, "rng": random_state(self.device), **rest})

    def load(self, file: Path, whole: Any, optimizer: torch.optim.Optimizer) -> dict[str, Any] | None:
        """Take up a kept training; its ``rest``, or None where there is none that is intact."""
        state = load_checkpoint(file)
        if state is None:
            return None
        whole.lm.load_state_dict(state["student"], strict=False)
        if whole.parts is not None:
            whole.parts.load_state_dict(state["parts"])
        optimizer.load_state_dict(state["optimizer"])
        set_random_state(state["rng"], self.device)
        return state

    def forget(self, file: Path) -> None:
        """Remove what ``save`` left."""
        file.unlink(missing_ok=True)


class Sharded(World):
    """One of several processes that hold a shard of every weight each (FSDP2)."""

    def __init__(self) -> None:
        from accelerate import FullyShardedDataParallelPlugin, PartialState
        from accelerate.utils import parse_flag_from_env
        from torch.distributed.device_mesh import init_device_mesh

        launch.check()
        cpu = parse_flag_from_env("ACCELERATE_USE_CPU") or not torch.accelerator.is_available()
        state = PartialState(cpu=cpu, timeout=PATIENCE)
        if state.num_processes != launch.size():
            raise launch.LaunchError(f"{launch.size()} processes were launched, {state.num_processes} found")
        super().__init__(state.device)
        self.rank, self.size = state.process_index, state.num_processes
        self.mesh = init_device_mesh(self.device.type, (self.size,))
        self.plugin = FullyShardedDataParallelPlugin(fsdp_version=2)  # of the launch

    def spread(self, items: Sequence[T], work: Callable[[Sequence[T]], list[R]]) -> list[R]:
        mine = items[self.rank :: self.size]
        parts = self.gathered(work(mine) if len(mine) else [])
        return [parts[place % self.size][place // self.size] for place in range(len(items))]

    def gathered(self, value: T) -> list[T]:
        found: list[Any] = [None] * self.size
        torch.distributed.all_gather_object(found, value)
        return found

    def told(self, make: Callable[[], T]) -> T:
        found = [make() if self.main else None]
        torch.distributed.broadcast_object_list(found, src=0)
        return found[0]  # type: ignore[return-value]

    @contextmanager
    def locked(self, target: Path) -> Iterator[None]:
        if not self.main:
            yield
            return
        with super().locked(target):
            yield

    def reader(self, model: LoadedModel) -> LoadedModel:
        """The teacher, sharded: only its layers are read, its head and embedding come from elsewhere."""
        base = model.lm.base_model
        base.requires_grad_(False)
        self._shard(model.lm, base)
        return model

    def mirror(self, student: LoadedModel, lora: Lora | None) -> Callable[[], LoadedModel]:
        @cache
        def copy() -> LoadedModel:
            made = load(student.path, student.ref)
            if lora is not None:
                with torch.random.fork_rng(devices=[]):  # the training's own draws go on as they were
                    add_lora(made, lora)
            return self.place(made)

        def now() -> LoadedModel:
            self._copy_weights(student.lm, copy().lm)
            return copy()

        return now

    def _copy_weights(self, shared: nn.Module, whole: nn.Module) -> None:
        """What is trained; the rest is in both as it was loaded."""
        weights = dict(shared.named_parameters())
        with torch.no_grad():
            for name, parameter in whole.named_parameters():
                if parameter.requires_grad:
                    parameter.copy_(whole_tensor(weights[name]))

    def prepare(
        self, whole: Whole, optimizer: Callable[[], torch.optim.Optimizer], seed: int, limit: float
    ) -> tuple[Callable[..., Computed], torch.optim.Optimizer]:
        lm: Any = whole.lm
        if self.plugin.activation_checkpointing:
            lm.gradient_checkpointing_enable({"use_reentrant": False})
        self._shard(lm, whole)
        torch.manual_seed(seed + self.rank)  # dropout: every process draws its own
        return whole, optimizer()

    def _shard(self, lm: Any, root: nn.Module) -> None:
        """Shard each block of a transformer by itself, and the rest of ``root`` together."""
        from torch.distributed.fsdp import fully_shard

        blocks = set(lm._no_split_modules or ())
        options: dict[str, Any] = {
            "mesh": self.mesh,
            "reshard_after_forward": self.plugin.reshard_after_forward,
            "offload_policy": self.plugin.cpu_offload,
        }
        for module in lm.modules():
            if type(module).__name__ in blocks:
                fully_shard(module, **options)
        fully_shard(root, **options)

    def shares(self, micros: Sequence[T]) -> Iterator[tuple[T, bool]]:
        for start in range(0, len(micros), self.size):
            place = start + self.rank
            yield (micros[place], True) if place < len(micros) else (micros[start], False)

    def backward(self, total: Tensor, counts: bool, last: bool) -> None:
        (total * (self.size if counts else 0)).backward()  # type: ignore[no-untyped-call] # FSDP takes the mean

    def summed(self, total: float, terms: dict[str, Tensor]) -> tuple[float, dict[str, Tensor]]:
        parts = self.gathered((total, {name: value.item() for name, value in terms.items()}))
        names = dict.fromkeys(name for _, found in parts for name in found)
        sums = {name: torch.tensor(sum(found.get(name, 0.0) for _, found in parts)) for name in names}
        return sum(part for part, _ in parts), sums

    def save(self, file: Path, whole: Any, optimizer: torch.optim.Optimizer, rest: dict[str, Any]) -> None:
        own = {"rng": random_state(self.device), **rest}
        save_shards(file.with_suffix(""), whole, optimizer, own, self.rank)

    def load(self, file: Path, whole: Any, optimizer: torch.optim.Optimizer) -> dict[str, Any] | None:
        folder = self.told(lambda: intact_shards(file.with_suffix("")))
        if folder is None:
            return None
        own = load_shards(folder, whole, optimizer, self.rank)
        if own["rng"] is not None:
            set_random_state(own["rng"], self.device)
        return own

    def forget(self, file: Path) -> None:
        self.told(lambda: forget_shards(file.with_suffix("")))


class Engine(Sharded):
    """One of several processes under DeepSpeed (ZeRO-2 or 3) through accelerate."""

    def prepare(
        self, whole: Whole, optimizer: Callable[[], torch.optim.Optimizer], seed: int, limit: float
    ) -> tuple[Callable[..., Computed], torch.optim.Optimizer]:
        from accelerate import Accelerator
        from transformers.integrations.deepspeed import unset_hf_deepspeed_config

        accelerator = Accelerator()
        config = accelerator.state.deepspeed_plugin.deepspeed_config
        config |= {"train_micro_batch_size_per_gpu": 1, "gradient_clipping": limit}  # one call of Whole each
        raw = optimizer()
        self.engine, _ = accelerator.prepare(whole, raw)
        unset_hf_deepspeed_config()  # what is loaded from now on is whole
        if config["zero_optimization"]["stage"] == 3:
            self._declare(whole)
        self.backwards = accelerator.deepspeed_engine_wrapped
        torch.manual_seed(seed + self.rank)
        return self.engine, raw

    def _declare(self, whole: Whole) -> None:
        """Tell ZeRO-3 of the weights that a loss reads outside of the layers that hold them."""
        import deepspeed

        lm: Any = whole.lm
        read = {lm.get_output_embeddings().weight, lm.get_input_embeddings().weight}
        if whole.parts is not None:
            read |= set(whole.parts.parameters())
        for parameter in read:
            deepspeed.zero.register_external_parameter(self.engine.module, parameter)

    def backward(self, total: Tensor, counts: bool, last: bool) -> None:
        self.backwards.backward(total * (self.size if counts else 0), sync_gradients=last)

    def clip(self, parameters: list[nn.Parameter], limit: float) -> float:
        return float(self.engine.get_global_grad_norm())  # clipped and stepped with the last backward pass

    def step(self, optimizer: torch.optim.Optimizer) -> None:
        """See clip."""

    def _copy_weights(self, shared: nn.Module, whole: nn.Module) -> None:
        import deepspeed

        with deepspeed.zero.GatheredParameters(trainable(shared)):
            super()._copy_weights(shared, whole)

    def save(self, file: Path, whole: Any, optimizer: torch.optim.Optimizer, rest: dict[str, Any]) -> None:
        folder = file.with_suffix("")
        self.engine.save_checkpoint(str(folder), client_state=rest, exclude_frozen_parameters=True)
        self.told(lambda: keep_latest(folder))

    def load(self, file: Path, whole: Any, optimizer: torch.optim.Optimizer) -> dict[str, Any] | None:
        found, rest = self.engine.load_checkpoint(str(file.with_suffix("")), load_module_strict=False)
        return rest if found else None


@cache
def world(scale: str) -> World:
    """What this process is one of."""
    if launch.together():
        return Engine() if launch.deepspeed() else Sharded()
    return alone(scale)


def alone(scale: str) -> World:
    """This process by itself. The tiny scale stays on the CPU, where its records were made."""
    return World("cuda" if torch.cuda.is_available() and scale != "tiny" else "cpu")


def whole_tensor(tensor: Any) -> Tensor:
    """A tensor as a whole, from its shards where it has any."""
    full: Tensor = tensor.full_tensor() if hasattr(tensor, "full_tensor") else tensor
    return full


def own_tensor(tensor: Any) -> Tensor:
    """This process's shard of a tensor, or all of one that has none."""
    own: Tensor = tensor.to_local() if hasattr(tensor, "to_local") else tensor
    return own


def random_state(device: torch.device) -> Any:
    """The state of torch's generators that a training draws from."""
    own = torch.get_rng_state()
    return own if device.type == "cpu" else {"cpu": own, "device": torch.cuda.get_rng_state(device)}


def set_random_state(state: Any, device: torch.device) -> None:
    """Go on with what ``random_state`` gave."""
    if isinstance(state, dict):
        torch.set_rng_state(state["cpu"])
        torch.cuda.set_rng_state(state["device"], device)
    else:
        torch.set_rng_state(state)
