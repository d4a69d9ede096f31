"""A whole model that forgets classes by sample: made by `modulate()`; runs, verifies, bakes and stores itself."""

from __future__ import annotations

import functools
import math
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.fx import Proxy
from torch.utils._pytree import tree_leaves

from memmod import layer_groups, memory_file
from memmod.class_names import checked_names
from memmod.compiled import uncompiled_name
from memmod.distributed import processes
from memmod.distributed.sharded import any_sharded, parted_like, whole
from memmod.errors import MemoryFileError, ModelError, SelectionError
from memmod.files.state_hash import state_sha256
from memmod.nn.leaf import call_node
from memmod.nn.modulated import Modulated
from memmod.ops import gating
from memmod.ops.zero_gradient import wanted, with_zero_gradient
from memmod.outputs import entry_of, logits_of, with_tensors
from memmod.run_state import Running, RunState, Scope, eagerly
from memmod.selection import Forget, to_index
from memmod.surgery import bake as _bake
from memmod.surgery.base_architecture import bake_into_base
from memmod.surgery.config import ModulateConfig
from memmod.surgery.example import Example, random_images
from memmod.surgery.modify import Changes, modify
from memmod.surgery.record import Row
from memmod.surgery.verify import verify as _verify

# Values of one sample that `from_file` draws by itself: 64 MiB in fp32, more than 2,000 × 2,000 pixels in colour.
LARGEST_DRAWN_SAMPLE = 2**24
# What `bake` returns.
ARCHITECTURES = ("folded", "base")


class Summary:
    """What became of each layer: `rows` of (name, kind, action, reason); prints as a table.

    `gated_share` is the share in [0, 1] of the weights' values that is gated: of all layers and of what acts as a
    layer's weight, without the classifier head, biases, and what the user left out.
    """

    def __init__(self, rows: Sequence[Row], gated_share: float) -> None:
        self.rows = tuple(rows)
        self.gated_share = gated_share

    def counts(self) -> dict[str, int]:
        """How many layers of each action."""
        actions = [row.action for row in self.rows]
        return {action: actions.count(action) for action in dict.fromkeys(actions)}

    def __str__(self) -> str:
        table = [("layer", "kind", "action", "reason"), *((r.name, r.kind, r.action, r.reason) for r in self.rows)]
        widths = [max(len(row[column]) for row in table) for column in range(3)]
        lines = [
            "  ".join(cell.ljust(width) for cell, width in zip(row, [*widths, 0], strict=True)).rstrip()
            for row in table
        ]
        counts = ", ".join(f"{count} {action}" for action, count in self.counts().items())
        return "\n".join([*lines, counts])

    __repr__ = __str__


class ModulatedModel(nn.Module):
    """A frozen base whose layers carry a memory ``[num_classes, K]`` each, one row per class; made by `modulate()`.

    ``wf(x, forget=...)`` runs the base with the selected classes filtered out, per sample. Other attributes
    (`forward_features`, `default_cfg`, ...) pass through to the inner model `wf.model`; ``with wf.forgetting(...)``
    makes them obey a selection too. The base stays frozen and in eval mode whatever `train()` is called; the memories
    are the only parameters that train. Implements arXiv 2304.02049.

    Not made by hand: `model` is what surgery left of the base, `changes` what it did to it.
    """

    def __new__(cls, *_args: Any, **_kwargs: Any) -> ModulatedModel:
        _keep_out_of_compiled_code()
        return super().__new__(cls)

    @torch.inference_mode(False)
    def __init__(self, model: nn.Module, changes: Changes, class_names: tuple[str, ...] | None) -> None:
        super().__init__()
        self.num_classes = changes.num_classes
        self.class_names = class_names
        self.config = changes.config
        self.base_sha256 = changes.base_sha256
        self.input_shape = changes.input_shape
        self.state = RunState()
        # Its modules are those that were replaced: neither parameters nor in the state dict.
        self._changes = changes
        # After its own attributes: from here on, those that the base has too would be set there.
        self.model = model
        for layer in self._layers().values():
            layer.state = self.state
        for parameter in self.model.parameters():
            parameter.requires_grad_(False)
        for parameter in self.memory_parameters():
            parameter.requires_grad_(True)
        self.model.eval()

    if TYPE_CHECKING:

        def __call__(self, *args: Any, forget: Forget = None, **kwargs: Any) -> Any: ...

    def forward(self, *args: Any, forget: Forget = None, **kwargs: Any) -> Any:
        """What the base returns for ``(*args, **kwargs)``, with each sample's selected classes forgotten.

        Args:
            forget: -1 (nothing), an int or class name (whole batch), a set (all of it, whole batch), an int64 tensor
                (0-d, ``[B]``, ``[B, S]``), a list with one entry per sample; None: the enclosing `forgetting` scope's.

        Raises:
            SelectionError: a selection that cannot be applied.
            ModelError: torch.fx or torch.jit traces the model itself, or torch.export within a scope.
        """
        state = self.state
        if torch.compiler.is_compiling():
            # Part of somebody's compiled function, or exported.
            running = self._running(forget)
            if torch.compiler.is_exporting() and forget is None and not state.in_call and running.index is not None:
                raise ModelError(
                    "torch.export would keep the selection of the scope that is open for good: export wf.bake(...), or "
                    "pass the selection as an input, an int64 tensor, as memmod.export.program does"
                )
            before = state.enter(running)
            try:
                output = self.model(*args, **kwargs)
                return self._owing_gradients(output) if running.index is None else output
            finally:
                state.leave(before)
        # Compiled or not, this frame is not traced (`_keep_out_of_compiled_code`): the selection is an input of the
        # compiled layers, whatever its Python value. Every frame that it calls would be compiled by itself.
        node, base, before = eagerly(ModulatedModel._begin)(self, forget, args, kwargs)
        if node is not None:
            return node
        try:
            output = base(*args, **kwargs)
            if torch.is_grad_enabled():
                output = eagerly(ModulatedModel._announced)(self, output)
            return output
        finally:
            eagerly(RunState.leave)(state, before)

    def _begin(
        self, forget: Forget, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> tuple[Proxy | None, Callable[..., Any], Any]:
        """Under torch.fx the call as a node; else what to call, and what `RunState.leave` takes behind it."""
        if isinstance(args, Proxy):
            raise ModelError(
                "torch.fx cannot trace a ModulatedModel, whose arguments are its base's: trace wf.model, which keeps "
                "its gates, and select with `with wf.forgetting(...)`"
            )
        if any(isinstance(arg, Proxy) for arg in args):
            return call_node(self, args, {**kwargs, "forget": forget}), self.model, None
        if torch.jit.is_tracing() and not isinstance(forget, Tensor):
            raise ModelError(
                "torch.jit.trace would keep the selection of this moment for good: trace wf.bake(...), or a function "
                "whose input is the selection, an int64 tensor that it passes as forget="
            )
        running = self._running(forget)
        if running.index is not None and running.index.shape[0] != 1:
            self._check_batch(running.index, args, kwargs)
        # Dynamo compiles no frame of torch.nn's own, such as Sequential.forward, only what is inlined in another.
        of_torch = getattr(type(self.model).forward, "__module__", "").startswith("torch.")
        return None, functools.partial(_call, self.model) if of_torch else self.model, self.state.enter(running)

    def _announced(self, output: Any) -> Any:
        """The output of a forward that gradients may follow; called while its selection holds."""
        if self.state.index is None:
            output = self._owing_gradients(output)
        self.state.remember_for_backward(output)
        return output

    def _owing_gradients(self, output: Any) -> Any:
        """The output of a forward that selected nothing, whose backward gives every memory a gradient of zero.

        The graph holds no layer: nothing is computed, and nothing kept, for these gradients.
        """
        owed = wanted(self.memory_parameters())
        return with_tensors(output, lambda tensors: with_zero_gradient(tensors, owed)) if owed else output

    def logits(self, output: Any) -> Tensor:
        """The logits ``[B, C]`` in what this model, or its base, returned; where they are is in ``config.logits``.

        Raises:
            ModelError: the output has no such entry, or the model has no classifier (``config.output``).
        """
        if self.config.output is not None:
            raise ModelError(
                f"{type(self.model).__name__} has no logits: it was modulated with "
                f"ModulateConfig(output={self.config.output!r}), so whether a class is forgotten must be told from "
                "that entry by an objective of your own"
            )
        return logits_of(output, self.config.logits)

    def verified_output(self, output: Any) -> Tensor:
        """What gates must change in what this model returned: the logits ``[B, C]``, or the entry ``[B, ...]`` that
        ``config.output`` names where there is no classifier.

        Raises:
            ModelError: the output has no such entry.
        """
        return self.logits(output) if self.config.output is None else entry_of(output, self.config.output)

    def _running(self, forget: Forget) -> Running:
        running = self.state.running() if forget is None else self.state.selecting(self._index(forget))
        eager = not torch.compiler.is_compiling()
        if eager and running.index is None and torch.is_grad_enabled() and self._is_sharded():
            # FSDP waits for gradients of the layers themselves: -1 for the whole batch gives them, of zero.
            running = running._replace(index=torch.full((1,), -1, device=self.device))
        return running

    def _is_sharded(self) -> bool:
        return any_sharded(self.memory_parameters())

    def _check_batch(self, index: Tensor, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        x = next((t for t in tree_leaves((args, kwargs)) if isinstance(t, Tensor)), None)
        if x is not None and x.dim() > 0 and x.shape[0] != index.shape[0]:
            raise SelectionError(
                f"the selection is for {index.shape[0]} samples (shape {tuple(index.shape)}), but the input has "
                f"{x.shape[0]} (shape {tuple(x.shape)}): pass one entry per sample, or an int for the whole batch"
            )

    def _index(self, forget: Forget) -> Tensor | None:
        device = self.device
        # Memories that are loaded when their layer is called are on no device between calls.
        return to_index(forget, self.num_classes, self.class_names, None if device.type == "meta" else device)

    def forgetting(self, forget: Forget) -> Scope:
        """A scope in which every call that reaches the layers, `forward_features` say, obeys a selection.

        A context manager or a decorator. Held per thread and asyncio task, and by a generator while it runs; scopes
        nest, and an inner ``forget=-1`` selects nothing.

        Raises:
            SelectionError: when it is entered, a selection that cannot be applied.
        """
        running = None if forget is None else lambda: self.state.selecting(self._index(forget))
        return Scope(self.state, self, running)

    @contextmanager
    def batch_statistics(self) -> Iterator[ModulatedModel]:
        """A scope in which every normalised unit is standardised with the batch's own statistics, before its gate.

        As BatchNorm in training mode does, with the running statistics untouched and gradients through the statistics.
        Training under it keeps a class forgotten when BatchNorm statistics are estimated anew. Folded norms switch for
        this thread; norms that were not folded switch for the model, so use one thread.
        """
        norms = [m for m in self.model.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm)]
        before = [(norm, norm.training, norm.track_running_stats) for norm in norms]
        try:
            for norm in norms:
                norm.training, norm.track_running_stats = True, False
            with Scope(self.state, self, lambda: Running(self.state.index, batch_statistics=True)):
                yield self
        finally:
            for norm, training, track in before:
                norm.training, norm.track_running_stats = training, track

    @property
    def has_batch_statistics(self) -> bool:
        """Whether any unit is normalised by BatchNorm, folded or not."""
        return any(
            getattr(m, "normalised", False) or isinstance(m, nn.modules.batchnorm._BatchNorm)
            for m in self.model.modules()
        )

    @property
    def device(self) -> torch.device:
        """Where the memories are."""
        layers = (module for module in self.model.modules() if isinstance(module, Modulated))
        return next(memory.device for layer in layers for _, memory in layer.memories())

    def _layers(self) -> dict[str, Modulated]:
        return {
            uncompiled_name(name): module
            for name, module in self.model.named_modules()
            if isinstance(module, Modulated)
        }

    def named_memories(self) -> Iterator[tuple[str, nn.Parameter]]:
        """(name, memory ``[num_classes, K]``) of every gated layer, in the model's order."""
        for name, layer in self._layers().items():
            for own, memory in layer.memories():
                yield f"{name}.{own}" if name else own, memory

    def memory_parameters(self) -> Iterator[nn.Parameter]:
        """Every memory, fp32 ``[num_classes, K]``: what an optimiser gets."""
        return (memory for _, memory in self.named_memories())

    def memory_state(self) -> dict[str, Tensor]:
        """A copy of every memory, by name; whole where FSDP split them, and then every process has to call this."""
        return {name: whole(memory.detach()).clone() for name, memory in self.named_memories()}

    def load_memory_state(self, memories: dict[str, Tensor]) -> None:
        """Set every memory from a `memory_state`; where FSDP split them, on every process.

        Raises:
            MemoryFileError: missing or unknown layers, or other shapes.
        """
        expected = dict(self.named_memories())
        memory_file.check_memories("the memory state", memories, expected)
        with torch.no_grad():
            for name, memory in expected.items():
                memory.copy_(parted_like(memories[name], memory))

    def gates(self) -> dict[str, Tensor]:
        """The gate values ``[num_classes, K]`` of every memory, by name."""
        classes = torch.arange(self.num_classes, device=self.device)
        return {
            f"{name}.{own}" if name else own: gating.gates(memory.detach(), classes, layer.gate)
            for name, layer in self._layers().items()
            for own, memory in layer.memories()
        }

    def summary(self) -> Summary:
        """What was gated, folded, replaced and skipped, and why."""
        changes = self._changes
        return Summary(changes.rows, changes.gated_weights / changes.weights if changes.weights else 1.0)

    def verify(self, example_input: Any = None) -> None:
        """Prove on `example_input` (default: random images of the shape that `modulate` saw) that every gate acts.

        Every gated layer is called; a selection for one sample changes its logits and leaves the others' bit-equal;
        each layer alone changes the logits. The trained memories are not used, and nothing is changed.

        Raises:
            ModelError: it does not hold; the layer is named.
        """
        example = self.checking_example(example_input)
        _verify(self.model, self.state, self.verified_output, self.device, example)

    def checking_example(self, example_input: Any = None) -> Example:
        """An example input, on the model's device: `example_input` (samples ``[B, ...]``), or two random images of the
        shape that it was made for.

        Raises:
            ModelError: what is given has fewer than two samples, or no tensor.
        """
        if example_input is None:
            example_input = random_images((2, *self.input_shape), next(self.model.parameters()))
        return Example.of(example_input).to(self.device)

    def bake(
        self,
        forget: Forget,
        threshold: float | None = None,
        architecture: str = "folded",
        example_input: Any = None,
    ) -> nn.Module:
        """An ordinary module, without memmod, that has forgotten one selection for good.

        Args:
            forget: what every sample forgets: an int, a class name, a set of them, or -1.
            threshold: gates below it become exactly 0 (0.3 is the recipe's).
            architecture: "folded": BatchNorms stay folded into their convolutions, the faster network. "base": the
                base's own modules and state-dict keys, so that the state dict loads into another instance of the base.
            example_input: with "base": what the result is compared on with the folded network; default: random images
                of the example's shape.

        Raises:
            SelectionError: a selection that differs between samples.
            ModelError: the architecture is another word, or "base" cannot hold the gates.
        """
        if architecture not in ARCHITECTURES:
            raise ModelError(
                f"architecture is {architecture!r}; it must be one of {', '.join(map(repr, ARCHITECTURES))}"
            )
        index = self._index(forget)
        if index is not None and index.shape[0] != 1:
            raise SelectionError(
                f"bake writes one selection into the weights, but this one has {index.shape[0]} samples: "
                "pass an int, a class name or a set"
            )
        if architecture == "folded":
            return _bake.bake(self.model, self._changes, index, threshold)
        example = self.checking_example(example_input)
        return bake_into_base(self.model, self._changes, index, threshold, example)

    def unload(self) -> nn.Module:
        """The base again: unfolded, without memories, an ordinary module with weights of its own."""
        return _bake.unload(self.model, self._changes)

    def save_memory(self, path: str | os.PathLike[str], card: dict[str, Any] | None = None) -> None:
        """Write the memories and their card as safetensors, atomically.

        Where FSDP split the memories, every process has to call this, and process 0 writes.

        Args:
            card: what else to record (seeds, metrics, ...), as JSON values.

        Raises:
            MemoryFileError: the card is not JSON.
        """
        own = {
            "num_classes": self.num_classes,
            "class_names": None if self.class_names is None else list(self.class_names),
            "base_sha256": self.base_sha256,
            "input_shape": list(self.input_shape),
            "config": self.config.to_dict(),
            "layers": list(self._layers()),
        }
        writes = processes.rank() == 0 or not self._is_sharded()
        memories = {}
        for name, memory in self.named_memories():
            value = whole(memory.detach())
            if writes:
                # Off the device one by one: all of them whole may be more than it holds.
                memories[name] = value.cpu()
        if writes:
            memory_file.write_memory_file(path, memories, {**(card or {}), **own})

    @classmethod
    def from_file(cls, base: nn.Module, path: str | os.PathLike[str], example_input: Any = None) -> ModulatedModel:
        """The modulated model of a memory file, around the base that it was made from.

        Args:
            example_input: a batch of at least 2 samples; default: random images of the shape in the file.

        Raises:
            MemoryFileError: damaged or changed, of another base, or of other layers or shapes.
        """
        card, memories = memory_file.read_memory_file(path)
        found = state_sha256(base)
        if found != card["base_sha256"]:
            raise MemoryFileError(
                f"{path} belongs to another base: it was made for weights with SHA-256 {card['base_sha256'][:12]}..., "
                f"these have {found[:12]}...: load the base that was unlearned"
            )
        shape, layers = card["input_shape"], set(card["layers"])
        if example_input is None and math.prod(shape) > LARGEST_DRAWN_SAMPLE:
            raise MemoryFileError(
                f"{path} names samples of shape {tuple(shape)}, which are too large to be drawn: pass example_input"
            )
        try:
            config = ModulateConfig.from_dict(card["config"])
            if example_input is None:
                example_input = random_images((2, *shape), next(base.parameters()))
            wf = _modulated(modify(base, card["num_classes"], example_input, config, only=layers), card["class_names"])
        except ValueError as error:
            raise MemoryFileError(f"{path} does not fit this base: {error}") from error
        memory_file.check_memories(path, memories, dict(wf.named_memories()))
        wf.load_memory_state(memories)
        return wf

    def train(self, mode: bool = True) -> ModulatedModel:
        """Set the `training` flag of this module alone: the base stays in eval mode."""
        self.training = mode
        self.model.eval()
        return self

    def __getattr__(self, name: str) -> Any:
        try:
            return super().__getattr__(name)
        except AttributeError:
            inner = self.__dict__.get("_modules", {}).get("model")
            # Protocols (__deepcopy__, __reduce__) are this module's own, never those of what it wraps.
            if inner is None or name.startswith("__"):
                raise
            value = getattr(inner, name)
            own = {"reset_classifier": self._refuse_other_head, "group_matcher": self._group_matcher}
            return own.get(name, value)

    def _group_matcher(self, *args: Any, **kwargs: Any) -> Callable[[str], tuple[float, ...]]:
        """The base's own (timm's convention), by which a memory belongs to its layer; only where the base has one."""
        return layer_groups.inside("model.", self.model.group_matcher(*args, **kwargs))

    def no_weight_decay(self) -> set[str]:
        """Parameters that timm's optimisers are to exempt from weight decay: every memory, and what the base says.

        Decay draws a memory towards 0, where a sigmoid gate is half closed; λ₂ of the objectives is what opens gates.
        """
        of_base = getattr(self.model, "no_weight_decay", ())
        of_base = of_base() if callable(of_base) else of_base
        memories = {id(memory) for memory in self.memory_parameters()}
        own = {name for name, parameter in self.named_parameters() if id(parameter) in memories}
        return own | {f"model.{name}" for name in of_base}

    def __setattr__(self, name: str, value: Any) -> None:
        inner = self.__dict__.get("_modules", {}).get("model")
        if inner is None:
            return super().__setattr__(name, value)
        if name == "model":
            if _uncompiled(value) is not _uncompiled(inner):
                raise ModelError(
                    "the inner model of a ModulatedModel cannot be replaced, its memories belong to it: modulate() the "
                    "other model"
                )
            return super().__setattr__(name, value)
        if name == "peft_config":
            self._refuse_adapters_around_gates()
        own = name in self.__dict__ or name in self._buffers or name in self._parameters or hasattr(type(self), name)
        if own or name in self._modules or not hasattr(inner, name):
            return super().__setattr__(name, value)
        # Attributes are read from the inner model, so they are set there.
        if isinstance(value, (nn.Module, Tensor)) or isinstance(getattr(inner, name), (nn.Module, Tensor)):
            raise ModelError(
                f"{name} is part of the frozen base: its memories were made for it as it is. Change the base and "
                f"modulate() it again, or set wf.model.{name} if the memories may be lost or meaningless"
            )
        setattr(inner, name, value)

    def _refuse_adapters_around_gates(self) -> None:
        """What an adapter adds to the output of a layer with its gate inside would be neither gated nor rectified."""
        wrapped = [name for name in self._layers() if name.endswith(".base_layer")]
        if wrapped:
            raise ModelError(
                f"peft has put adapters around {wrapped[0]} and {len(wrapped) - 1} more layers that have their gates "
                "inside, so that what the adapters add would not be gated: modulate() the base with "
                "ModulateConfig(behind=True), whose layers stay ordinary, and give that to peft; or modulate() the "
                "model that peft returns"
            )

    def _refuse_other_head(self, *_args: Any, **_kwargs: Any) -> None:
        raise ModelError(
            f"reset_classifier would change the head, but the memories were made for its {self.num_classes} classes: "
            "change the base and modulate() it again"
        )

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *rest: Any) -> None:
        # Before anything is copied: this module's own entries are loaded before its children's.
        memories = {f"model.{name}" for name, _ in self.named_memories()}
        for name, present in self.state_dict().items():
            given = state_dict.get(prefix + name)
            if name in memories or not isinstance(given, Tensor) or not isinstance(present, Tensor):
                continue
            if present.is_meta or given.shape != present.shape or _same_values(given, present):
                continue
            raise ModelError(
                f"the state dict is that of a model with another base ({prefix}{name} has other values): the memories "
                "belong to the base that they were trained with. Load it into modulate() of that base, or set the "
                "memories alone with load_memory_state()"
            )
        super()._load_from_state_dict(state_dict, prefix, *rest)

    def extra_repr(self) -> str:
        return f"num_classes={self.num_classes}, granularity={self.config.granularity!r}, gate={self.config.gate!r}"


def _call(module: nn.Module, *args: Any, **kwargs: Any) -> Any:
    return module(*args, **kwargs)


def _uncompiled(module: Any) -> Any:
    """The module that torch.compile wrapped."""
    return getattr(module, "_orig_mod", module)


def _same_values(given: Tensor, present: Tensor) -> bool:
    """Whether loading `given` would leave `present` as it is; NaN is the same as NaN."""
    given = given.to(present.device, present.dtype)
    return bool(((given == present) | ((given != given) & (present != present))).all())


@functools.cache
def _keep_out_of_compiled_code() -> None:
    """Have Dynamo run the frame of `ModulatedModel.forward` as it is, and compile what it calls.

    torch.compiler.disable(recursive=False) would do so too, but break compiled functions that call a model.
    """
    from torch._dynamo.eval_frame import skip_code

    skip_code(ModulatedModel.forward.__code__)


def modulate(
    model: nn.Module,
    num_classes: int | None = None,
    example_input: Any = None,
    config: ModulateConfig | None = None,
    class_names: Sequence[str] | Mapping[Any, Any] | None = None,
) -> ModulatedModel:
    """Give every linear and conv layer of a copy of `model`, but its classifier head, a memory of one row per class.

    BatchNorm is folded into the convolution in front of it, and a ReLU fused with the layer in front of it; attention
    whose projections are not called as modules is replaced by an equivalent; what cannot be gated is listed with its
    reason in `summary()`. With nothing selected the copy gives the model's own logits.

    Args:
        model: any classifier; it is not changed.
        num_classes: C; default: as many as the head's logits. Without a classifier: the number of concepts.
        example_input: a batch ``[B, ...]``, B ≥ 2, as the model takes it (a tuple of arguments or a dict of keyword
            arguments too); default: random images of the size that the model says it takes.
        config: granularity, gate, which layers, and where the logits are in a model that returns several tensors.
        class_names: C names, so that selections can use them: a list or tuple in the order of the classes' numbers, or
            a mapping between names and numbers, either way round.

    Raises:
        ModelError: no layer can be gated; the model is or holds a ModulatedModel, cannot be copied, or is TorchScript;
            the example is rejected or too small; the logits are uncertain; `num_classes` or `class_names` disagrees
            with the head.
    """
    if isinstance(model, nn.Module):
        for name, module in model.named_modules():
            if isinstance(module, ModulatedModel):
                raise ModelError(
                    f"{name or 'the model'} is a ModulatedModel, whose selections would not be those of the new one: "
                    "modulate the base, which its unload() returns"
                )
    return _modulated(modify(model, num_classes, example_input, config), class_names)


def _modulated(
    modified: tuple[nn.Module, Changes], class_names: Sequence[str] | Mapping[Any, Any] | None
) -> ModulatedModel:
    model, changes = modified
    return ModulatedModel(model, changes, checked_names(class_names, changes.num_classes))
