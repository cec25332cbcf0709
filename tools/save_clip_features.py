"""Write the files of CLIP embeddings that OVFormer reads; CLIP comes from open_clip (pip install "lbvq[open-vocab]").

    python tools/save_clip_features.py text --dataset lvvis_val --output datasets/metadata/fg_bg_5_10_lvvis_ens.npy
    python tools/save_clip_features.py text --classes "cat, dog" --output my_classes.npy
    python tools/save_clip_features.py images --dataset lvvis_val --output datasets/metadata/lvvis_val_clip_feature.pkl

Both files have the published form: text is a (classes, 512) array in the order of the class index, images are a
dictionary {image id or "datasets/<path>": (1, 512) tensor}. The published text files were made with learned prompts;
those of this tool come from a template and are expected to give somewhat lower scores with the published weights.
"""

from __future__ import annotations

import argparse
import functools
import sys
from collections.abc import Hashable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tqdm import tqdm

from lbvq.data.catalog import DatasetCatalog, MetadataCatalog, dataset_root
from lbvq.engine.user_errors import user_command
from lbvq.files.images import read_image
from lbvq.files.writing import atomic_path
from lbvq.inference.prompts import PROMPT_SETS, parse_classes

if TYPE_CHECKING:  # imported when the arguments are read, so that --help answers at once
    import torch

    from lbvq.modeling.ovformer.towers import ClipTowers


@user_command
def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("text", "images"))
    parser.add_argument("--dataset", help="registered name, such as lvvis_val or lvis_v1_train_norare")
    parser.add_argument("--classes", help="for text: names instead of a data set, separated by commas")
    parser.add_argument("--output", required=True, help=".npy for text, .pkl for images")
    parser.add_argument("--prompts", default="photo", choices=sorted(PROMPT_SETS))
    parser.add_argument("--model", default="ViT-B-32-quickgelu", help="name in open_clip")
    parser.add_argument("--weights", default="openai", help="tag of open_clip, or a file")
    parser.add_argument("--device", help="default: cuda where there is one, else cpu")
    parser.add_argument("--overwrite", action="store_true", help="replace the output if it exists")
    args = parser.parse_args()
    if Path(args.output).exists() and not args.overwrite:
        parser.error(f"{args.output} exists; --overwrite replaces it")
    if (args.dataset is None) == (args.classes is None) or (args.what == "images" and args.dataset is None):
        parser.error("give --dataset, or for text --classes instead")
    from lbvq.inference.vocabulary import embed_names, save_npy, towers_name

    load = functools.partial(load_towers, args.model, args.weights, args.device)
    if args.what == "text":
        names = class_names_of(args.dataset) if args.classes is None else parse_classes(args.classes)
        text = embed_names(names, load, model=towers_name(args.model, args.weights), prompts=args.prompts)
        save_npy(args.output, text.numpy())
        print(f"{args.output}: {len(text)} classes of {text.shape[1]} numbers.")
    else:
        features = image_features(load(), args.dataset)
        save_features(Path(args.output), features)
        print(f"{args.output}: {len(features)} images.")


def load_towers(model: str, weights: str, device: str | None) -> ClipTowers:
    """CLIP on a device."""
    import torch

    from lbvq.modeling.ovformer.towers import ClipTowers

    device = device or ("cuda" if torch.cuda.is_available() else "cpu")
    return ClipTowers.load(model, weights).to(device)


def class_names_of(dataset: str) -> list[str]:
    """Names of the classes of a data set by class index."""
    if dataset not in DatasetCatalog:
        raise KeyError(f"no data set is called {dataset!r}; there are {', '.join(DatasetCatalog.list())}")
    return list(MetadataCatalog.get(dataset).thing_classes)


def image_features(towers: ClipTowers, dataset: str) -> dict[Hashable, torch.Tensor]:
    """Embeddings of all images of a data set, whole and not augmented, by published key."""
    import torch

    from lbvq.modeling.ovformer.towers import IMAGES_AT_ONCE

    files = dict(keys_and_files(DatasetCatalog.get(dataset)))
    features, keys = {}, list(files)
    for start in tqdm(range(0, len(keys), IMAGES_AT_ONCE), unit="batch"):
        batch = keys[start : start + IMAGES_AT_ONCE]
        images = [torch.from_numpy(read_image(files[key]).copy()).permute(2, 0, 1) for key in batch]
        # cloned: a row of a batch would be saved with the whole batch
        rows = towers.encode_images(images).cpu()
        features.update((key, row.clone()[None]) for key, row in zip(batch, rows, strict=True))
    return features


def keys_and_files(records: list[dict[str, Any]]) -> Iterator[tuple[Hashable, str]]:
    """(key, file) of every image or frame: the image id, or the path below the data root after `datasets/`."""
    from lbvq.modeling.ovformer.image_features import ROOT_IN_KEYS

    for record in records:
        if "file_names" not in record:
            yield record["image_id"], record["file_name"]
            continue
        for file in record["file_names"]:
            path = Path(file)
            is_below = path.is_relative_to(dataset_root())
            yield (ROOT_IN_KEYS + path.relative_to(dataset_root()).as_posix() if is_below else path.as_posix()), file


def save_features(path: Path, features: dict[Hashable, torch.Tensor]) -> None:
    """Write the file as a whole or not at all."""
    import torch

    with atomic_path(path) as part, open(part, "wb") as file:
        torch.save(features, file)


if __name__ == "__main__":
    sys.exit(main())
