"""The real ground range products: metadata only, of 2015 (old layout of noise) and 2021 (new)."""

from smgrid.sources.safe import open_safe

_OLD = "S1A_IW_GRDH_1SDV_20150222T170725_20150222T170750_004739_005DD8_CEAB"
_NEW = "S1A_IW_GRDH_1SDV_20210119T031653_20210119T031718_036201_043ED0_8255"
_ALPS = "S1B_IW_GRDH_1SDV_20210401T052623_20210401T052648_026269_032297_ECC8"
_ROME = "S1B_IW_GRDH_1SDV_20211223T051122_20211223T051147_030148_039993_5371"
_FILES = {_OLD: f"{_OLD}.zip", _NEW: f"{_NEW}.zip"}

ANNOTATIONS = [(_OLD, "vv"), (_OLD, "vh"), (_NEW, "vv"), (_NEW, "vh")]
ANNOTATIONS += [(_ALPS, "vv"), (_ALPS, "vh"), (_ROME, "vv")]
TABLES = [pair for pair in ANNOTATIONS if pair[0] != _ALPS]


def real_file(shared, name):
    folder = shared / "data" / "real" / "s1_grd_safe"
    return folder / _FILES.get(name, f"{name}.SAFE.zip")


def open_real(shared, name):
    return open_safe(str(real_file(shared, name)), origin="test.yml, line 1")
