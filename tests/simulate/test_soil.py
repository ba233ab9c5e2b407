import numpy as np
import pytest

from smgrid.simulate.soil import describe_soil, make_soil
from smgrid.simulate.terrain import Terrain

# Saxton & Rawls (2006), table 3, 2.5 % of organic matter: sand, clay [%]; wilting point, field
# capacity, saturation [% of volume], conductivity [mm/h], bulk density [g/cm3].
TABLE = {
    "sand": (88, 5, 5, 10, 46, 108.1, 1.43),
    "loamy sand": (80, 5, 5, 12, 46, 96.7, 1.43),
    "sandy loam": (65, 10, 8, 18, 45, 50.3, 1.46),
    "loam": (40, 20, 14, 28, 46, 15.5, 1.43),
    "silt loam": (20, 15, 11, 31, 48, 16.1, 1.38),
    "sandy clay loam": (60, 25, 17, 27, 43, 11.3, 1.50),
    "clay loam": (30, 35, 22, 36, 48, 4.3, 1.39),
    "silty clay": (10, 45, 27, 41, 52, 3.7, 1.26),
    "clay": (25, 50, 30, 42, 50, 1.1, 1.33),
}


@pytest.mark.parametrize("texture", TABLE)
def test_pedotransfer_gives_the_published_table(texture):
    sand, clay, wilting, capacity, saturation, conductivity, density = TABLE[texture]
    soil = describe_soil(np.float32([sand / 100]), np.float32([clay / 100]), organic_matter=2.5)
    assert abs(soil.wilting_point[0] * 100 - wilting) < 0.55
    assert abs(soil.field_capacity[0] * 100 - capacity) < 0.55
    assert abs(soil.porosity[0] * 100 - saturation) < 0.55
    assert abs(soil.conductivity[0] / conductivity - 1) < 0.05
    assert abs(soil.bulk_density[0] - density) < 0.01


def test_compaction_takes_pores():
    loose, dense = (
        describe_soil(np.float32([0.4]), np.float32([0.2]), compaction=f) for f in (1.0, 1.1)
    )
    assert dense.porosity[0] < loose.porosity[0]
    assert dense.conductivity[0] < loose.conductivity[0]
    np.testing.assert_allclose(dense.porosity, 1 - dense.bulk_density / 2.65, rtol=1e-6)


def test_a_drawn_soil_is_possible_and_varies():
    rng = np.random.default_rng(0)
    wetness = rng.normal(9, 2, (80, 90)).astype(np.float32)
    soil = make_soil(Terrain(None, wetness, wetness, wetness), seed=2)
    assert (soil.sand + soil.clay < 1).all()
    assert (soil.wilting_point > 0).all()
    assert (soil.wilting_point < soil.field_capacity).all()
    assert (soil.field_capacity < soil.porosity).all()
    assert 0.08 < soil.sand.std() < 0.25
    assert 0.03 < soil.field_capacity.std() < 0.12
    assert np.corrcoef(soil.clay.ravel(), wetness.ravel())[0, 1] > 0.2  # hollows are finer
