"""What a figure is drawn from, as JSON: tables, arrays, pictures and plain values, and back.

Floats keep six significant digits, as everywhere in results. A figure is drawn from the values
after they have been through here, so equal values give an equal picture on any machine.
"""

import base64
import hashlib
import io
import json
import math
from collections.abc import Mapping
from dataclasses import fields, is_dataclass
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import pandas as pd
from PIL import Image

SIGNIFICANT_DIGITS = 6
"""Beyond them processors disagree."""

JSON = dict[str, Any] | list[Any] | str | float | int | bool | None


def digest(document: JSON) -> str:
    """The first 16 hexadecimal digits of the SHA-256 of a document, whatever its spacing."""
    text = json.dumps(document, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def rounded(value: float) -> float:
    """A finite number to six significant digits.

    >>> rounded(1 / 3)
    0.333333
    """
    return float(f"{value:.{SIGNIFICANT_DIGITS}g}")


def encode(value: Any) -> JSON:
    """Turn a value into JSON that `decode` reads; TypeError for one of a kind it does not know."""
    if value is None or isinstance(value, bool | int | str):
        return value
    if isinstance(value, float):
        return rounded(value) if math.isfinite(value) else {"$float": repr(float(value))}
    if isinstance(value, np.generic):
        return encode(value.item())
    if isinstance(value, pd.DataFrame):
        return {"$table": _table(value)}
    if isinstance(value, pd.Series):
        return {"$series": _table(value.to_frame(value.name or 0)), "name": encode(value.name)}
    if isinstance(value, np.ndarray):
        return {"$array": encode(value.tolist()), "dtype": str(value.dtype)}
    if isinstance(value, Image.Image):
        return {"$image": _picture(value)}
    if isinstance(value, Mapping):
        return {"$map": [[encode(key), encode(each)] for key, each in value.items()]}
    if isinstance(value, tuple):
        return {"$tuple": [encode(each) for each in value]}
    if isinstance(value, list | range):
        return [encode(each) for each in value]
    if is_dataclass(value) and not isinstance(value, type):
        named = {each.name: encode(getattr(value, each.name)) for each in fields(value)}
        return {"$record": named}
    if isinstance(value, SimpleNamespace):
        return {"$record": {name: encode(each) for name, each in vars(value).items()}}
    raise TypeError(
        f"a figure is drawn from tables, arrays, pictures and plain values, not from a "
        f"{type(value).__name__}: pass what is drawn of it"
    )


def decode(document: JSON) -> Any:
    """Turn what `encode` gave into values again; a data class comes back as a plain namespace."""
    if isinstance(document, list):
        return [decode(each) for each in document]
    if not isinstance(document, dict):
        return document
    kind, content = next(iter(document.items()))
    match kind:
        case "$float":
            return float(content)
        case "$table":
            return _frame(content)
        case "$series":
            return _frame(content).iloc[:, 0].rename(decode(document["name"]))
        case "$array":
            return np.array(decode(content), dtype=document["dtype"])
        case "$image":
            return Image.open(io.BytesIO(base64.b64decode(content)))
        case "$map":
            return {decode(key): decode(each) for key, each in content}
        case "$tuple":
            return tuple(decode(each) for each in content)
        case "$record":
            return SimpleNamespace(**{name: decode(each) for name, each in content.items()})
    raise ValueError(f"a value of kind {kind!r} is not known: the file is of another version")


def _table(frame: pd.DataFrame) -> dict[str, Any]:
    """Column by column, which is shorter than row by row and keeps each column's type."""
    columns = [_column(each, name) for name, each in frame.items()]
    index, plain = frame.index, pd.RangeIndex(len(frame))
    if isinstance(index, pd.RangeIndex) and index.name is None and index.equals(plain):
        return {"columns": columns, "rows": len(frame)}
    levels = index.to_frame(index=False)
    names = [encode(name) for name in index.names]
    return {
        "columns": columns,
        "index": [_column(levels.iloc[:, level], level) for level in range(levels.shape[1])],
        "names": names,
    }


def _column(values: pd.Series, name: Any) -> dict[str, Any]:
    if isinstance(values.dtype, pd.CategoricalDtype):
        kind = {"categories": encode(values.cat.categories.tolist()), "ordered": values.cat.ordered}
        return {"name": encode(name), "category": kind, "values": encode(values.tolist())}
    given = [None if each is pd.NA else each for each in values.tolist()]
    return {"name": encode(name), "dtype": str(values.dtype), "values": encode(given)}


def _frame(content: Mapping[str, Any]) -> pd.DataFrame:
    columns = {decode(each["name"]): _series(each) for each in content["columns"]}
    if "index" not in content:
        return pd.DataFrame(columns, index=pd.RangeIndex(content["rows"]))
    levels = [_series(each) for each in content["index"]]
    names = [decode(each) for each in content["names"]]
    index = (
        pd.Index(levels[0], name=names[0])
        if len(levels) == 1
        else pd.MultiIndex.from_arrays(levels, names=names)
    )
    return pd.DataFrame({name: each.array for name, each in columns.items()}, index=index)


def _series(content: Mapping[str, Any]) -> pd.Series:
    values = decode(content["values"])
    if "category" in content:
        kind = content["category"]
        dtype: Any = pd.CategoricalDtype(decode(kind["categories"]), ordered=kind["ordered"])
    else:
        dtype = content["dtype"]
    return pd.Series(cast("list[Any]", values), dtype=dtype)


def _picture(image: Image.Image) -> str:
    written = io.BytesIO()
    image.save(written, "png", optimize=True)
    return base64.b64encode(written.getvalue()).decode("ascii")
