"""The code, package versions and devices that made the rows of a report."""

from __future__ import annotations

import json
from collections import Counter

import pandas as pd

_PROVENANCE = {
    "source": "source of gsq",
    "commit": "commit",
    "execution_signature": "execution",
    "device": "device",
    "data": "training data",
    "versions": "package versions",
}


def provenance(table: pd.DataFrame) -> dict[str, dict[str, int]]:
    """Count the rows made by each protocol, then by each code, device, data set and set of package versions."""
    found: dict[str, dict[str, int]] = {}
    if "protocol" in table and table["protocol"].notna().any():
        words = []
        for _, row in table[table["protocol"].notna()].iterrows():
            known = [f"rFID in {row['features']}"] if pd.notna(row.get("features")) else []
            known += [f"{int(row['num_images']):,} images"] if pd.notna(row.get("num_images")) else []
            known += [f"{int(row['resolution'])} pixels"] if pd.notna(row.get("resolution")) else []
            words.append(f"{row['protocol']}: {', '.join(known)}")
        found["evaluation protocol"] = dict(Counter(words).most_common())
    for name, words_for in _PROVENANCE.items():
        if name in table and table[name].notna().any():
            values = table[name].dropna().astype(str)
            if name == "versions":
                values = values.map(_versions)
            found[words_for] = {str(key): int(count) for key, count in values.value_counts().items()}
    return found


def _versions(text: str) -> str:
    try:
        return ", ".join(f"{name} {version}" for name, version in json.loads(text).items())
    except (ValueError, AttributeError):
        return text


def mixtures(table: pd.DataFrame) -> list[str]:
    """Warn where the rows were made by several versions of the code or the packages, or on several devices."""
    words = {"source": "versions of gsq's source", "versions": "sets of package versions", "device": "devices"}
    counts = {text: table[name].nunique() for name, text in words.items() if name in table}
    mixed = [f"{count} {text}" for text, count in counts.items() if count > 1]
    return [f"the table mixes runs of {' and of '.join(mixed)}"] if mixed else []
