"""Builds the images of this study from Debian packages: FOLDER/images/train and val, PNG of 64 x 64 pixels.

    python results/photos-scaling/build_data.py FOLDER [--manifest]

Needs Debian 12 (apt-get, dpkg-deb), internet, 12 GB of disk for packages and contents below FOLDER, and Pillow.
Packages already below FOLDER/deb are not downloaded again. With --manifest, packages.csv and manifest.csv beside this
file are written again; without, the images must agree with them.

What is kept: pictures of at least 64 pixels a side (photographs: 128) and at most 3 : 1, in colour, not flat, with many
colours, no masks and no normal, gloss or glow maps. Duplicates are found by structure: two images whose 32 x 32 grey
versions correlate by more than 0.9 are one, whatever their size, tint or name; the first in the order of PACKAGES is
kept. Images that correlate by more than 0.7 are on the same side of the split, which is a hash of the source's bytes.
The middle square is scaled to 64 pixels; photographs of at least 768 pixels give up to six squares that do not overlap,
all on the same side of the split.
"""

from __future__ import annotations

import argparse
import csv
import gzip
import hashlib
import io
import re
import shutil
import subprocess
import sys
import zipfile
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

HERE = Path(__file__).parent
SIZE = 64
VALIDATION_SHARE = 0.3
SAME, RELATED = 0.9, 0.7
SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".tga")
# Maps that a renderer reads beside a colour texture, by the ends of their names.
MAPS = re.compile(
    r"_(n|nm|norm|normal|normals?map|bump|h|height|gloss|g|glow|gm|luma|local|s|sm|spec|specular|mask|alpha|blend|pants"
    r"|shirt|reflect|rm|ao|light|lightmap|lm|editor)$",
    re.IGNORECASE,
)


@dataclass(frozen=True)
class Package:
    """A Debian package: where its pictures lie, and whether they are photographs to be cut into several squares."""

    name: str
    version: str
    pattern: str
    photographs: bool = False
    licence: str = ""
    """Where the copyright file is not machine-readable: what it says."""


PACKAGES = (
    Package("gnome-backgrounds", "43.1-1", r"backgrounds/", True, "CC-BY-2.0; CC-BY-SA-2.0; CC-BY-SA-3.0; GPL-2+"),
    Package("mate-backgrounds", "1.26.0-1", r"backgrounds/", True),
    Package("plasma-workspace-wallpapers", "4:5.27.5-2", r"wallpapers/.*/contents/images/", True),
    Package("lomiri-wallpapers-16.04", "20.04.0-2", r"backgrounds/", True),
    Package("lomiri-wallpapers-20.04", "20.04.0-2", r"backgrounds/", True),
    Package("ukui-wallpapers", "20.04.3-1.1", r"backgrounds/", True),
    Package("opencv-doc", "4.6.0+dfsg-12", r"examples/(data|.*input_images)/", True),
    Package("stellarium-data", "0.22.2-1", r"(nebulae/default|landscapes)/", True),
    Package("tuxpaint-stamps-default", "2022.06.04-1", r"stamps/"),
    Package("torcs-data", "1.3.7+dfsg-5", r"tracks/"),
    Package("flightgear-data-base", "1:2020.3.16+dfsg-1", r"Textures/(Terrain|Runway)/"),
    Package("supertuxkart-data", "1.4+dfsg-2", r"data/(textures|tracks|library)/"),
    Package("ufoai-textures", "2.5-2", r"textures/"),
    Package("nexuiz-textures", "2.5.2-12", r"(textures|env)/", licence="GPL-2+"),
    Package("openarena-081-textures", "0.8.5split-14", r"(textures|env)/"),
    Package("redeclipse-data", "1.6.0-1", r"redeclipse/data/(?!textures/(keys|icons)|fonts|props)"),
)


@dataclass(frozen=True)
class Source:
    """A picture of a package that passed the filters."""

    package: Package
    path: str
    sha256: str
    outline: np.ndarray
    """32 x 32 grey values, mean 0 and norm 1, flattened."""
    squares: tuple[bytes, ...]
    """PNG files of 64 x 64 pixels."""


def extract(package: Package, folder: Path) -> Path:
    """The contents of a package, downloaded by apt where its file is not there yet."""
    deb, contents = folder / "deb", folder / "contents" / package.name
    deb.mkdir(parents=True, exist_ok=True)
    if not list(deb.glob(f"{package.name}_*.deb")):
        subprocess.run(["apt-get", "download", "-q", f"{package.name}={package.version}"], cwd=deb, check=True)
    if not contents.exists():
        partial = contents.with_suffix(".partial")
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir(parents=True)
        subprocess.run(["dpkg-deb", "-x", next(deb.glob(f"{package.name}_*.deb")), partial], check=True)
        partial.rename(contents)
    return contents


def licence(package: Package, contents: Path) -> str:
    """The licences that the package's copyright file names."""
    if package.licence:
        return package.licence
    file = next((contents / "usr/share/doc" / package.name).glob("copyright*"))
    data = gzip.decompress(file.read_bytes()) if file.suffix == ".gz" else file.read_bytes()
    found = re.findall(r"^License: *(\S.*?)\s*$", data.decode("utf-8", "replace"), re.MULTILINE)
    return "; ".join(sorted(set(found)))


def files(package: Package, contents: Path) -> Iterator[tuple[str, bytes]]:
    """Name and bytes of each picture of a package, also of those in game archives."""

    def wanted(name: str) -> bool:
        stem, _, suffix = name.rpartition(".")
        return f".{suffix.lower()}" in SUFFIXES and bool(re.search(package.pattern, name)) and not MAPS.search(stem)

    for path in sorted(contents.rglob("*")):
        if not path.is_file() or path.is_symlink():
            continue
        name = str(path.relative_to(contents))
        if path.suffix == ".pk3":
            with zipfile.ZipFile(path) as archive:
                for member in sorted(archive.namelist()):
                    if wanted(member):
                        yield f"{name}!{member}", archive.read(member)
        elif wanted(name):
            yield name, path.read_bytes()


def colour_image(data: bytes) -> Image.Image | None:
    """The picture on white, cut to what is not transparent; None where most of that is transparent."""
    image = Image.open(io.BytesIO(data))
    if "A" in image.getbands() or "transparency" in image.info:
        image = image.convert("RGBA")
        alpha = image.getchannel("A")
        box = alpha.point(lambda value: 255 if value > 127 else 0).getbbox()
        if box is None:
            return None
        image, alpha = image.crop(box), alpha.crop(box)
        if np.asarray(alpha).mean() < 127:
            return None
        white = Image.new("RGBA", image.size, (255, 255, 255, 255))
        return Image.alpha_composite(white, image).convert("RGB")
    return image.convert("RGB")


def is_picture(small: np.ndarray) -> bool:
    """Whether a 64 x 64 version (H, W, 3; uint8) is in colour, not flat, of many colours and no mask or normal map."""
    values = small.astype(np.float64)
    chroma = values.max(-1) - values.min(-1)
    contrast = values.mean(-1).std()
    colours = len(np.unique(values.reshape(-1, 3) // 8, axis=0))
    red, green, blue = values.reshape(-1, 3).mean(0)
    normal_map = blue > 200 and abs(red - 128) < 20 and abs(green - 128) < 20
    mask = (chroma > 220).mean() > 0.25
    return bool(chroma.mean() > 4 and contrast > 8 and colours > 100 and not normal_map and not mask)


def squares(image: Image.Image, several: bool) -> list[Image.Image]:
    """The middle square, or for large photographs up to 3 x 2 squares that do not overlap; 64 pixels each."""
    width, height = image.size
    side = min(width, height)
    columns, rows = (min(3, 2 * width // side), 2) if several and side >= 768 else (1, 1)
    if rows == 2:
        side //= 2
    left, top = (width - columns * side) // 2, (height - rows * side) // 2
    boxes = [
        (left + c * side, top + r * side, left + (c + 1) * side, top + (r + 1) * side)
        for r in range(rows)
        for c in range(columns)
    ]
    return [image.crop(box).resize((SIZE, SIZE), Image.Resampling.LANCZOS, reducing_gap=3.0) for box in boxes]


def read(job: tuple[Package, str, bytes]) -> Source | None:
    """The picture where it passes the filters."""
    package, name, data = job
    try:
        image = colour_image(data)
    except Exception as error:  # Pillow raises many kinds for broken files.
        print(f"{package.name}: {name}: {error}", file=sys.stderr)
        return None
    if image is None or min(image.size) < (2 * SIZE if package.photographs else SIZE):
        return None
    if max(image.size) > 3 * min(image.size):
        return None
    whole = image.resize((SIZE, SIZE), Image.Resampling.LANCZOS, reducing_gap=3.0)
    if not is_picture(np.asarray(whole)):
        return None
    kept = [square for square in squares(image, package.photographs) if is_picture(np.asarray(square))]
    if not kept:
        return None
    outline = np.asarray(whole.convert("L").resize((32, 32), Image.Resampling.BOX), np.float32).ravel()
    outline -= outline.mean()
    outline /= np.linalg.norm(outline)
    return Source(package, name, hashlib.sha256(data).hexdigest(), outline, tuple(map(png, kept)))


def png(image: Image.Image) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, "PNG", optimize=True)
    return buffer.getvalue()


def distinct(sources: list[Source]) -> tuple[list[Source], list[str]]:
    """The sources without duplicates, and for each the sha256 that decides its side of the split."""
    kept: list[Source] = []
    groups: list[str] = []
    outlines = np.empty((len(sources), 1024), np.float32)
    for source in sources:
        similar = outlines[: len(kept)] @ source.outline
        best = int(similar.argmax()) if kept else -1
        if kept and similar[best] > SAME:
            continue
        outlines[len(kept)] = source.outline
        groups.append(groups[best] if kept and similar[best] > RELATED else source.sha256)
        kept.append(source)
    return kept, groups


def split_of(group: str) -> str:
    return "val" if int(group[:8], 16) < VALIDATION_SHARE * 16**8 else "train"


def write_csv(path: Path, rows: list[dict[str, object]]) -> None:
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, list(rows[0]), lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--manifest", action="store_true", help="write packages.csv and manifest.csv")
    arguments = parser.parse_args()

    found: list[Source] = []
    seen: Counter[str] = Counter()
    licences: dict[str, str] = {}
    with ProcessPoolExecutor(2) as pool:
        for package in PACKAGES:
            contents = extract(package, arguments.folder)
            licences[package.name] = licence(package, contents)
            batch: list[tuple[Package, str, bytes]] = [(package, *file) for file in files(package, contents)]
            seen[package.name] = len(batch)
            found += [source for source in pool.map(read, batch, chunksize=4) if source]
            print(f"{package.name}: {len(batch)} pictures, {len(found)} kept so far", flush=True)
    sources, groups = distinct(found)

    manifest: list[dict[str, object]] = []
    written: Counter[tuple[str, str]] = Counter()
    images = arguments.folder / "images"
    shutil.rmtree(images, ignore_errors=True)
    for split in ("train", "val"):
        (images / split).mkdir(parents=True)
    for source, group in zip(sources, groups, strict=True):
        split = split_of(group)
        for number, data in enumerate(source.squares):
            (images / split / f"{source.sha256[:16]}-{number}.png").write_bytes(data)
        written[source.package.name, split] += len(source.squares)
        manifest.append(
            {
                "package": source.package.name,
                "path": source.path,
                "sha256": source.sha256,
                "split": split,
                "images": len(source.squares),
            }
        )
    table: list[dict[str, object]] = [
        {
            "package": package.name,
            "version": package.version,
            "licence": licences[package.name],
            "pictures": seen[package.name],
            "sources": sum(row["package"] == package.name for row in manifest),
            "train_images": written[package.name, "train"],
            "val_images": written[package.name, "val"],
        }
        for package in PACKAGES
    ]
    for split in ("train", "val"):
        rows = [row for row in manifest if row["split"] == split]
        print(f"{split}: {len(rows)} sources, {sum(int(str(row['images'])) for row in rows)} images")
    if arguments.manifest:
        write_csv(HERE / "packages.csv", table)
        write_csv(HERE / "manifest.csv", manifest)
        return
    with (HERE / "manifest.csv").open(newline="", encoding="utf-8") as file:
        committed = list(csv.DictReader(file))
    if committed != [{key: str(value) for key, value in row.items()} for row in manifest]:
        raise SystemExit("The images are not those of manifest.csv: other versions of packages or of Pillow?")
    print("The images are those of manifest.csv.")


if __name__ == "__main__":
    main()
