import numpy as np

from smgrid.simulate.soil import describe_soil
from smgrid.simulate.water_balance import (
    MIN_MOISTURE,
    ROOT_DEPTH,
    SURFACE_DEPTH,
    State,
    drainage,
    first_state,
    root_wetness,
    step,
    surface_moisture,
)

SAND = np.linspace(0.1, 0.85, 24, dtype=np.float32).reshape(4, 6)
CLAY = (0.9 * (1 - SAND) * 0.5).astype(np.float32)
SOIL = describe_soil(SAND, CLAY)
WETNESS = np.tile(np.linspace(-2, 4, 6, dtype=np.float32), (4, 1))


def field(value):
    return np.full(SAND.shape, value, dtype=np.float32)


def live(days, *, rain, demand=3.0, ndvi=0.5, wetness=WETNESS, state=None):
    state = state or first_state(SOIL)
    for i in range(days):
        amount = rain(i) if callable(rain) else rain
        state, fluxes = step(
            state, SOIL, wetness=wetness, rain=field(amount), demand=field(demand), ndvi=field(ndvi)
        )
    return state, fluxes


def test_no_water_is_lost_or_made():
    rng = np.random.default_rng(0)
    state = first_state(SOIL)
    for _ in range(400):
        rain = field(rng.gamma(0.7, 12) if rng.random() < 0.4 else 0.0)
        demand, ndvi = field(rng.uniform(0, 9)), field(rng.uniform(0, 1))
        before, deficit = state.surface + state.root, state.deficit
        state, f = step(state, SOIL, wetness=WETNESS, rain=rain, demand=demand, ndvi=ndvi)
        after = state.surface + state.root
        gain = rain - f.runoff - f.evaporation - f.transpiration - f.recharge + f.supply
        np.testing.assert_allclose(after - before, gain, atol=2e-3)
        lost = f.baseflow + f.supply.mean() - f.recharge.mean()
        assert abs(state.deficit - deficit - lost) < 1e-4
        fluxes = (f.runoff, f.evaporation, f.transpiration, f.recharge, f.supply)
        assert min(flux.min() for flux in fluxes) >= 0
        assert (f.evaporation + f.transpiration <= 1.1 * demand + 1e-4).all()
        assert (state.surface >= 0).all()
        assert (state.surface <= SOIL.porosity * SURFACE_DEPTH + 1e-3).all()
        assert (state.root <= SOIL.porosity * ROOT_DEPTH + 1e-2).all()


def test_a_flood_fills_the_pores_and_the_rest_runs_off():
    state, fluxes = live(3, rain=500.0)
    assert (fluxes.runoff > 100).all()
    moisture = surface_moisture(state, SOIL)
    assert (moisture <= SOIL.porosity).all()
    assert (moisture > SOIL.field_capacity - 0.03).all()


def test_a_drought_dries_the_surface_to_its_limit_and_no_further():
    state, fluxes = live(300, rain=0.0, demand=8.0, wetness=field(-8.0))
    moisture = surface_moisture(state, SOIL)
    assert (moisture >= MIN_MOISTURE).all()
    assert (moisture < SOIL.wilting_point + 0.02).all()
    assert (fluxes.evaporation < 0.5).all()
    assert (root_wetness(state, SOIL) < 0.1).all()


def test_hollows_stay_wetter_than_ridges():
    relief = np.where(np.arange(6) % 2, np.float32(4), np.float32(-2)) + field(0.0)
    soil = describe_soil(field(0.4), field(0.2))
    state = first_state(soil)
    for i in range(120):
        state, _ = step(
            state,
            soil,
            wetness=relief,
            rain=field(12.0 if i % 6 == 0 else 0.0),
            demand=field(3.0),
            ndvi=field(0.5),
        )
    moisture = surface_moisture(state, soil)
    assert (moisture[:, 1::2] > moisture[:, ::2] + 0.02).all()


def test_fine_soil_holds_more_than_sand():
    state, _ = live(60, rain=lambda i: 10.0 if i % 5 == 0 else 0.0, wetness=field(0.0))
    moisture = surface_moisture(state, SOIL).ravel()
    assert moisture[0] > moisture[-1] + 0.1
    assert (np.diff(moisture) < 0).all()


def test_plants_take_water_from_below_and_bare_soil_from_the_surface():
    _, bare = live(3, rain=0.0, ndvi=0.1)
    _, dense = live(3, rain=0.0, ndvi=0.9)
    assert (bare.transpiration == 0).all()
    assert (dense.evaporation == 0).all()
    assert (dense.transpiration > 1).all()


def test_drainage_agrees_with_its_equation_in_small_steps():
    """dW/dt = -24 Ks (W / full) ** n, by 50 000 explicit steps."""
    full = SOIL.porosity.astype(np.float64) * SURFACE_DEPTH
    water = 0.95 * full
    n = 50_000
    for _ in range(n):
        water -= 24.0 * SOIL.conductivity * (water / full) ** SOIL.exponent / n
    drained = drainage((0.95 * full).astype(np.float32), SOIL, depth=SURFACE_DEPTH)
    np.testing.assert_allclose(0.95 * full - drained, water, rtol=2e-3)


def test_dry_soil_does_not_drain():
    assert (drainage(0.25 * SOIL.porosity * SURFACE_DEPTH, SOIL, depth=SURFACE_DEPTH) == 0).all()


def test_states_are_values():
    state = first_state(SOIL)
    kept = State(state.surface.copy(), state.root.copy(), state.deficit)
    step(state, SOIL, wetness=WETNESS, rain=field(20), demand=field(2), ndvi=field(0.4))
    assert np.array_equal(state.surface, kept.surface)
    assert np.array_equal(state.root, kept.root)
