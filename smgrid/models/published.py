"""The released 9 km DenseSM weights: where they come from, and how to know them.

They carry no licence that would allow shipping them, so they are fetched from their public origin
into the user's cache, or read from a folder that the user has.
"""

import os
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

import pooch

from smgrid.cache import cache_folder
from smgrid.errors import BundleError

PUBLISHED_NAME = "densesm-9km"
FOLDER_VARIABLE = "SMGRID_DENSESM_9KM"

_REPOSITORY = "EOV-Solutions/Transfer-DenseSM-E_pack"
_COMMIT = "c9638d9471681359c1fc242b46fafb918569281b"
BASE_URL = (
    f"https://raw.githubusercontent.com/{_REPOSITORY}/{_COMMIT}/pretrained_models/DenseSM_9km/"
)

_TIMEOUT = 60.0  # seconds without an answer
_RETRIES = 2

PUBLISHED_CARD: Mapping[str, Any] = MappingProxyType(
    {
        "title": "DenseSM 9 km, pre-trained on SMAP",
        "origin": BASE_URL,
        "licence": "none stated by the authors: all rights reserved",
        "citation": (
            "Zhu, L., Dai, J., Liu, Y., Yuan, S. and Walker, J. P. (2024), Remote Sensing of "
            "Environment 301, 113944"
        ),
        "training": {
            "target": "SMAP L3 enhanced passive soil moisture, 9 km",
            "samples": 387_000,
            "epochs": 100,
            # From the published training histories, last ten epochs.
            "validation": "mean of the 25 main members: RMSE 0.0357 m3 m-3, R 0.940",
        },
    }
)

# The main ensemble; then the narrow, deep models that are published beside it.
MAIN_SHA256: Mapping[str, str] = MappingProxyType(
    {
        "coarse_1_8.pt": "d3b9aec885bfdc6b810d9cc135e541ba94127f30f88a75505b489dec2f4b3c91",
        "coarse_1_16.pt": "dd949cafd1c4d589cc1f2a693691946f2a0e601301e049442bfc9bc985538579",
        "coarse_1_32.pt": "28b7582ec180ea7ba77d7eb6af07385ce48fa8d3bf22e1b6373b03965f1abe1c",
        "coarse_1_64.pt": "4ea483abb5946dc651eb20186b10c461b64294e36bd45ced835df73b954f8ba9",
        "coarse_1_128.pt": "ec3314229d2b9f1c2eb1bbbbf2a8493ee911d7374c3d72c536d4bfe019e94382",
        "coarse_2_8.pt": "e53eebfbcf15fc7035468b474e0df57fd4fd198cde6a495b24225297db58b24e",
        "coarse_2_16.pt": "551dcba0fadaa63298e10f5574ffc8dd38d5eb515588564085b495847db251dd",
        "coarse_2_32.pt": "cc469c79c2e72cea7aa287bdb2628bb23116bcb71295c07bbabb02e92df56862",
        "coarse_2_64.pt": "63735b8891683f5913bb794af2fd3956a2581ca5fb3bb0f389839e88bf7d2535",
        "coarse_2_128.pt": "1b91f4fa3a9a01d920093e39159b2725838d68d06968256531ffb1cfefcd58ac",
        "coarse_3_8.pt": "79c043b64f2feea489b225b320c01c30fc28ca6d8b768e5298216f52532b987d",
        "coarse_3_16.pt": "69bc2090f4e00ab861e2d4ef7a630142eb5ddd58e071f5eb3d7ddac0ee86ab83",
        "coarse_3_32.pt": "43acfda3ba8632f517898f5913aa341bda97be68ac88405ff7ff14fd95d58ad2",
        "coarse_3_64.pt": "d6763d875300c0a990c4a79950a6c44bea4e7578ad521af6dbee67096215b9e0",
        "coarse_3_128.pt": "c1008baf07134efa6d45263ff9358bf53bc134dfb68dc419a8ea417fa195a611",
        "coarse_4_8.pt": "79ef05a5df3c3ce58c78d94481556b47c656870f131ece6e1670a48cdd920e87",
        "coarse_4_16.pt": "de2847702631afd652ea8e91c6350b74804ce365e03fd117329e790a95483077",
        "coarse_4_32.pt": "898b94ff203921fa940e773de1be84827baf39b3e35d0006a00a307f5c021420",
        "coarse_4_64.pt": "5651ca6aae0c0aeb10a3e8640d75aa330bf1387dcdead8c27eceb9bda67e9f3f",
        "coarse_4_128.pt": "93fbffb8aa0129b657fe12efdeb94dab8f28c86d57468825bf4ab8b3ce530589",
        "coarse_5_8.pt": "4c795cd14cca26d13d5ead7caa4817278ad9c01aa45f5a66a7022fd41cb40395",
        "coarse_5_16.pt": "cb09809d5433aa62582d198811112f73e2cd4eb2041bf033243c0321b10d0dde",
        "coarse_5_32.pt": "95a92a58cfbaf85ccb5d962e99ca4359218ed1f8be0eab04fe951d7ada2a4266",
        "coarse_5_64.pt": "714f4e79d048268c1d7e5620b3eb918308161b637af68dd05490445a953417b7",
        "coarse_5_128.pt": "f40bf307f8a3249fd8b68557fe9808d0ff6b6ebfbb7c3e8da0176c804fbbe33a",
    }
)
PUBLISHED_SHA256: Mapping[str, str] = MappingProxyType(
    {
        **MAIN_SHA256,
        "coarse_6_8_ave.pt": "99740d97eca9d15a649780f3d7320b073ecaf411feef5044c65eaaaf787fd420",
        "coarse_6_16_ave.pt": "4d8b149cc3a0a61b316365672f7b443d0f478c9fdaab480ef93ea8b262b42024",
        "coarse_7_8_ave.pt": "380a21e03195874d04ac720c7da4a23ab366b73d4d1dab222d13a19aabc05fe0",
        "coarse_7_16_ave.pt": "18a0137d72ca905f97e26019cd6cad37996c7ce66e40ef9bc6ac618772a9efdc",
        "coarse_8_6_ave.pt": "2fbf9357bca28170589774fb2f015f77d6920f38c507d476027b9a20bd16b153",
        "coarse_8_8_ave.pt": "e7a9b12e90a7cdb22f753ccab8c04233bfff0f1cfa29d933a3ae1cc34dea5504",
        "coarse_8_16_ave.pt": "ab93d14cbe37747468f7e870ef49191b27bef0860d0c95c48f9fb85356ec7613",
        "coarse_9_8_ave.pt": "3c4975b0cee1973e5c555b96bf46ac60c5cc3fc0588776e9a7cdcac09fdd459f",
        "coarse_9_16_ave.pt": "d3871e889f1daa5d239f5a7e49376b777dd5709a6b6c6d3ccd2313f517682a38",
        "coarse_10_8_ave.pt": "d6023bfa115e9eaea90f58690cca0e5f0cf187f0354d7ca28efa1b692697e8bc",
        "coarse_10_16_ave.pt": "24ce67df98992a715b11c6a437c0bee2ab8c969c321058e261e64431aa30ced1",
    }
)


def published_folder(folder: Path | str | None = None) -> Path:
    """Return a folder with the 25 files of the main ensemble, every one verified.

    Parameters
    ----------
    folder
        A folder that holds them. Default: the one named by the environment variable
        ``SMGRID_DENSESM_9KM``, else the cache, which is filled from the public origin. The cache
        is ``SMGRID_CACHE`` or the system's place for caches.

    Raises
    ------
    BundleError
        A file is missing, is not the published one, or cannot be fetched.
    """
    local = folder or os.environ.get(FOLDER_VARIABLE)
    return _verified(Path(local)) if local else _fetched()


def _verified(folder: Path) -> Path:
    for name, sha256 in MAIN_SHA256.items():
        path = folder / name
        if not path.is_file():
            raise BundleError(
                f"{folder} has no {name}; expected the {len(MAIN_SHA256)} files of {BASE_URL}"
            )
        found = pooch.file_hash(str(path))
        if found != sha256:
            raise BundleError(
                f"{path} is not the published file: sha256 {found}, expected {sha256}. Fetch it "
                f"again from {BASE_URL}{name}"
            )
    return folder


def _fetched() -> Path:
    cache = cache_folder(PUBLISHED_NAME)
    registry = pooch.create(
        path=cache,
        base_url=BASE_URL,
        registry={name: f"sha256:{sha256}" for name, sha256 in MAIN_SHA256.items()},
        retry_if_failed=_RETRIES,
    )
    for name in MAIN_SHA256:
        try:
            registry.fetch(name, downloader=pooch.HTTPDownloader(timeout=_TIMEOUT))
        except (OSError, ValueError) as error:
            raise BundleError(
                f"{BASE_URL}{name} could not be fetched into {cache}: {error}. Without a "
                f"connection, set {FOLDER_VARIABLE} to a folder that holds the "
                f"{len(MAIN_SHA256)} files"
            ) from error
    return cache
