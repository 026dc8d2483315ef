"""lora_fit: whether a PEFT adapter's tensors are those its config speaks of, and fit the base."""

from functools import cached_property

import torch

from layerloom.composer.errors import ComposeError, quoted

from .checkpoint import HEAD, TABLE, Checkpoint, TensorInfo
from .codecs import DTYPES
from .expression import ExpressionError
from .lora_config import CONFIG, MERGE, LoraConfig
from .lora_keys import BASE_LAYER, SAVE, LoraKeys, shown
from .tensorfile import TensorFile

TIED = "embed_tokens and lm_head are one matrix in the base (it ties its embeddings)"


class LoraFit:
    """Checks all of that, by the headers alone where it can; raises ComposeError with the file, the tensor and why.

    `scales` and `ranks` are those of every product, `indices` the rows of every embedding whose rows are replaced. What
    is stored for the head of a base that ties its embeddings is out of `keys` afterwards: it is the embedding's.
    """

    def __init__(self, config: LoraConfig, keys: LoraKeys, file: TensorFile, base: Checkpoint) -> None:
        self.scales: dict[str, float] = {}
        self.ranks: dict[str, int] = {}
        self.indices: dict[str, list[int]] = {}
        self._config, self._keys, self._file, self._base = config, keys, file, base
        self._check_names()
        for key in keys.lone.values():
            raise self._error(key, f"has no partner; {SAVE}")
        if not keys.changed:
            raise ComposeError(f"{file.path}: has nothing of an adapter in it; {SAVE}")
        for name, key in keys.whole.items():
            self._check_shape(key, self._info(name).shape)
            self._check_wrapping(name, key)
        try:
            for name in keys.pairs:
                self._check_pair(name)
            if self._tied:
                self._check_tied(*self._tied)
            for name in sorted(base.tensors.keys() - base.outside):
                if name.endswith(".weight") and len(base.tensors[name].shape) == 2:
                    self._check_factors(name.removesuffix(".weight"))
                self._check_saved(name)
        except ExpressionError as error:
            raise ComposeError(f"{file.path.with_name(CONFIG)}: {error}") from error
        self._check_biases()
        self._check_rows()

    @cached_property
    def _tied(self) -> tuple[str, str] | None:
        """The names of embedding and head, where they are one matrix."""
        if not self._base.ties_embeddings:
            return None
        name = next((name for name in self._base.tensors if name.endswith(TABLE)), None)
        heads = [found for found in self._keys.changed if found.endswith(HEAD)]
        if name is None or len(heads) > 1 or HEAD in self._base.tensors:
            return None
        return name, heads[0] if heads else HEAD

    def _info(self, name: str) -> TensorInfo:
        return self._base.tensors[self._tied[0] if self._tied and name == self._tied[1] else name]

    def _error(self, key: str, reason: str) -> ComposeError:
        return ComposeError(f"{self._file.path}: {shown(key)}: {reason}")

    def _check_names(self) -> None:
        known = {*self._base.tensors, *(self._tied or ())}
        unknown = {name: key for name, key in self._keys.changed.items() if name not in known}
        for name, key in unknown.items():
            more = f", nor {len(unknown) - 1} more that the adapter has" if len(unknown) > 1 else ""
            if name in self._keys.biases:
                reason = f"lora_bias: the base {self._base.path} has no {quoted(name)} to add it to{more}; PEFT cannot "
                raise self._error(key, f"{reason}merge it either: train without lora_bias")
            reason = f"the base {self._base.path} has no {quoted(name)}{more}: this is an adapter of another model"
            raise self._error(key, f"{reason}, or its trainer has other names; save it with PEFT, or {MERGE}")

    def _check_shape(self, key: str, wanted: tuple[int, ...], why: str = "the base's is") -> None:
        found = self._file.tensors[key]
        if found.dtype not in DTYPES:
            raise self._error(key, f"dtype {found.dtype} is none of {', '.join(DTYPES)}")
        if found.shape != wanted:
            raise self._error(
                key, f"shape {found.shape}, {why} {wanted}: this is the adapter of another model, or config"
            )

    def _check_wrapping(self, name: str, key: str) -> None:
        """That PEFT would load the tensor: it has the base's under another name where there are factors."""
        module = name.rpartition(".")[0]
        has_factors = f"{module}.weight" in self._keys.pairs
        if BASE_LAYER in key and not has_factors:
            raise self._error(key, "is the layer beneath factors, and there are no factors; save the adapter anew")
        if name in self._keys.pairs and BASE_LAYER not in key:
            raise self._error(key, f"there are factors too, and PEFT reads one of both; {MERGE}")

    def _targets(self, module: str) -> bool:
        return any(self._config.targets(self._own(name)) for name in self._also(module))

    def _saves(self, module: str) -> bool:
        return any(self._config.saves(self._own(name)) for name in self._also(module))

    def _own(self, module: str) -> str:
        """What the adapter's config calls a module of the base's."""
        return self._keys.own.get(f"{module}.weight", f"{module}.weight").removesuffix(".weight")

    def _also(self, module: str) -> tuple[str, ...]:
        """The modules that are changed with this one."""
        if self._tied and self._config.ensure_weight_tying and f"{module}.weight" in self._tied:
            return tuple(name.removesuffix(".weight") for name in self._tied)
        return (module,)

    def _check_pair(self, name: str) -> None:
        module, pair, info = name.removesuffix(".weight"), self._keys.pairs[name], self._info(name)
        if not self._targets(module):
            raise self._error(pair.a, f"{CONFIG} does not name it as a target")
        if len(info.shape) != 2:
            raise self._error(pair.a, f"{name} is no matrix in the base")
        if pair.embedding != name.endswith(TABLE):
            kinds = ("an embedding", "a linear layer")
            of, on = kinds if pair.embedding else kinds[::-1]
            raise self._error(pair.a, f"is a factor of {of}, and {module} is {on}; {SAVE}")
        rank = self.ranks[name] = self._config.rank(self._own(module))
        rows, columns = info.shape[::-1] if pair.embedding else info.shape
        self._check_shape(pair.a, (rank, columns), f"and rank {rank} on this base needs")
        self._check_shape(pair.b, (rows, rank), f"and rank {rank} on this base needs")
        self.scales[name] = self._config.scale(self._own(module))

    def _check_factors(self, module: str) -> None:
        """That all the factors there are to be are there."""
        file = self._file.path
        there = any(f"{name}.weight" in self._keys.pairs for name in self._also(module))
        if self._config.lists_targets and not there and self._targets(module):
            raise ComposeError(f"{file}: {module}: has no factors, and {CONFIG} names it as a target")
        if self._config.lora_bias and there and f"{module}.bias" not in self._keys.biases:
            raise ComposeError(f"{file}: {module}: has no lora_B.bias, and {CONFIG} has lora_bias; {MERGE}")

    def _check_saved(self, name: str) -> None:
        """That what is stored whole is there, and nothing else is said of it."""
        module, _, parameter = name.rpartition(".")
        if not self._saves(module):
            return
        together = {f"{name}.{parameter}" for name in self._also(module)}
        if not together & self._keys.whole.keys():
            raise ComposeError(f"{self._file.path}: {module}: is missing, and {CONFIG} has it in modules_to_save")
        for other in (self._keys.pairs, self._keys.rows):
            if together & other.keys():
                raise self._error(self._keys.changed[name], f"{CONFIG} has {module} in modules_to_save; {MERGE}")

    def _check_biases(self) -> None:
        """That a bias to add has factors beside it, and that there is a trained one for all that `bias` is about."""
        for name, key in self._keys.biases.items():
            if not self._config.lora_bias or f"{name.removesuffix('.bias')}.weight" not in self._keys.pairs:
                raise self._error(key, f"there are no factors beside it, or {CONFIG} has no lora_bias; {SAVE}")
        kind = self._config.bias
        if kind == "none":
            return
        of = {name.removesuffix(".weight") for name in self._keys.pairs} if kind == "lora_only" else None
        biases = [name for name in self._base.tensors.keys() - self._base.outside if name.endswith(".bias")]
        wanted = [name for name in biases if of is None or name.removesuffix(".bias") in of]
        file = self._file.path.with_name(CONFIG)
        if not wanted:
            reason = f"the base {self._base.path} has none there; where none were trained, set it to 'none', or {MERGE}"
            raise ComposeError(f"{file}: bias {quoted(kind)}: {reason}")
        for name in wanted:
            if name not in self._keys.whole:
                reason = f"and {name} is not in {self._file.path.name}; save the adapter anew, or {MERGE}"
                raise ComposeError(f"{file}: bias {quoted(kind)}: trained biases are stored, {reason}")

    def _check_rows(self) -> None:
        for name, key in self._keys.rows.items():
            listed = self._config.token_indices(name.removesuffix(".weight"))
            if not name.endswith((TABLE, HEAD)):
                raise self._error(key, f"has rows of {name}, which is no embedding")
            rows, columns = self._info(name).shape
            if listed is None:
                raise self._error(key, f"{CONFIG} does not say of which tokens these are (trainable_token_indices)")
            self._check_shape(key, (len(listed), columns), f"{len(listed)} trainable_token_indices on this base need")
            other = self._keys.whole.get(name) or (self._keys.pairs[name].a if name in self._keys.pairs else None)
            if other is not None:
                raise self._error(key, f"{other} is there too, and only one of both can be read; {MERGE}")
            file = self._file.path.with_name(CONFIG)
            for index in listed:
                if not 0 <= index < rows:
                    raise ComposeError(f"{file}: trainable_token_indices: {index}: the base's are 0 to {rows - 1}")
            if len(set(listed)) < len(listed):
                raise ComposeError(f"{file}: trainable_token_indices: has a token twice")
            self.indices[name] = listed
        wanted = self._config.trainable_token_indices or []
        ends = wanted if isinstance(wanted, dict) else [TABLE.removesuffix(".weight")]
        for end in ends if wanted else []:
            stored = any(name.removesuffix(".weight").endswith(end) for name in self._keys.rows)
            same = self._tied is not None and self.indices.get(self._tied[0]) == self._config.token_indices(end)
            if not stored and not same:
                file = self._file.path.with_name(CONFIG)
                reason = f"their rows (token_adapter.trainable_tokens_delta) are not in {self._file.path.name}"
                raise ComposeError(f"{file}: trainable_token_indices: {quoted(end)}: {reason}; save the adapter anew")

    def _check_tied(self, embedding: str, head: str) -> None:
        """That an adapter of tied embeddings changes both sides, and alike: no checkpoint holds what PEFT runs else."""
        keys = self._keys
        changed = {name for name in (embedding, head) if name in keys.changed}
        # Where the rows of an embedding are replaced, PEFT replaces the head's too.
        if not changed or (changed == {embedding} and embedding in keys.rows):
            return
        advice = "train it with modules_to_save and ensure_weight_tying, or on a base with tie_word_embeddings false"
        if len(changed) == 1:
            raise self._error(keys.changed[changed.pop()], f"{TIED}; the adapter changes one side alone; {advice}")
        if not (self._same_product(embedding, head) and self._same_weight(embedding, head)):
            raise self._error(keys.changed[head], f"{TIED}; the adapter makes two different ones of them; {advice}")
        # PEFT runs the one matrix with the product added once; its own merge adds it once for either side.
        for stored in (keys.pairs, keys.whole, keys.rows):
            stored.pop(head, None)

    def _same_product(self, embedding: str, head: str) -> bool:
        ours, theirs = self._keys.pairs.get(embedding), self._keys.pairs.get(head)
        if ours is None or theirs is None:
            return ours is theirs
        equal = all(
            torch.equal(self._file.read(one).float().T, self._file.read(other).float())
            for one, other in ((ours.b, theirs.a), (ours.a, theirs.b))
        )
        return equal and self.scales[embedding] == self.scales[head]

    def _same_weight(self, embedding: str, head: str) -> bool:
        if self._keys.rows.keys() & {embedding, head}:
            return False
        if not self._keys.whole.keys() & {embedding, head}:
            return True
        sides = [self._keys.whole.get(name) for name in (embedding, head)]
        base = self._base.read(embedding)
        ours, theirs = (base if key is None else self._file.read(key).to(base.dtype) for key in sides)
        return torch.equal(ours, theirs)
