"""What a model is: protocols, nothing to inherit; and finding one by name."""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Mapping
from types import MappingProxyType
from typing import Any, Protocol, runtime_checkable

from torch import Tensor, nn

from fullrank.batch import Batch
from fullrank.config import from_dict
from fullrank.errors import UnknownNameError, nearest
from fullrank.lookup import Lookup
from fullrank.schema import Schema

Assets = Mapping[str, Lookup]
NO_ASSETS: Assets = MappingProxyType({})


@runtime_checkable
class Model(Protocol):
    """An `nn.Module` built from a schema, a config and assets, that returns named losses."""

    Config: type[Any]

    def __init__(self, schema: Schema, config: Any, assets: Assets = NO_ASSETS) -> None: ...

    def forward(self, batch: Batch) -> dict[str, Tensor]:
        """Returns named scalar losses; their sum is minimised."""
        ...


@runtime_checkable
class Ranker(Protocol):
    """Scores rows."""

    def score(self, batch: Batch) -> dict[str, Tensor]:
        """Returns label -> logits [B]."""
        ...


@runtime_checkable
class Retriever(Ranker, Protocol):
    """Scores rows by a user's vector and an item's, each known without the other.

    `score(batch)` is `match(encode_user(batch), encode_item(batch))`. A label's logit is the
    product of the two vectors and a constant, so that an index finds the best items of a user.
    """

    item_fields: tuple[str, ...]  # what an item's vector depends on

    def encode_user(self, batch: Batch) -> dict[str, Tensor]:
        """Returns label -> [B, D]; no field of `item_fields` is read."""
        ...

    def encode_item(self, batch: Batch) -> Tensor:
        """Returns [B, D], the same for all labels; no field but `item_fields` is read."""
        ...

    def match(self, user: Mapping[str, Tensor], item: Tensor) -> dict[str, Tensor]:
        """Returns label -> logits [B] for label -> [B, D], or [1, D] for one user, and [B, D]."""
        ...


def list_models() -> list[str]:
    """Returns the names of the models that ship with fullrank: the file names in `models/`."""
    found = importlib.import_module("fullrank.models").__path__
    return sorted(m.name for m in pkgutil.iter_modules(found))


def model_class(name: str) -> type[Any]:
    """Returns the class behind a name; a dotted name is imported as the user's own module.

    Raises:
        UnknownNameError: there is no such model; the nearest name is suggested.
    """
    path = name if "." in name else f"fullrank.models.{name}"
    try:
        module = importlib.import_module(path)
    except ModuleNotFoundError as cause:
        if cause.name is None or not path.startswith(cause.name):
            raise  # the module exists and one of its own imports does not
        raise UnknownNameError(
            "there is no such model",
            where="model name",
            found=f"'{name}'",
            expected="a file of fullrank/models, or the dotted path of your own module",
            fix=nearest(name, list_models()),
        ) from cause
    if not hasattr(module, "MODEL"):
        raise UnknownNameError(
            "a module declares no model",
            where=path,
            found="no name MODEL",
            expected="MODEL = YourClass on the last line",
            fix="add it",
        )
    found: type[Any] = module.MODEL
    return found


def create(name: str, schema: Schema, config: Any = None, assets: Assets = NO_ASSETS) -> nn.Module:
    """Builds a model by name.

    Args:
        name: a file of `fullrank/models`, or the dotted path of a module with a MODEL.
        schema: what the batches hold.
        config: the model's own Config, a mapping of its settings, or None for the defaults.
        assets: lookups by name.
    """
    cls = model_class(name)
    if config is None:
        config = cls.Config()
    elif isinstance(config, Mapping):
        config = from_dict(cls.Config, dict(config), f"{name}.Config")
    built: nn.Module = cls(schema, config, assets)
    return built
