import itertools

import numpy as np

from smgrid.simulate.fields import fractal_field, smooth_fields, stream


def test_streams_repeat_and_do_not_depend_on_each_other():
    first = stream(5, "soil").random(4)
    assert np.array_equal(first, stream(5, "soil").random(4))
    assert not np.array_equal(first, stream(6, "soil").random(4))
    assert not np.array_equal(first, stream(5, "terrain").random(4))
    assert not np.array_equal(stream(5, "a", "b").random(4), stream(5, "b", "a").random(4))


def test_fractal_field_has_the_spectrum_asked_for():
    """Slope of log power over log frequency, on the periodic field before it is cut."""
    slopes = []
    for i in range(4):
        field = fractal_field(stream(i, "test"), (256, 256), exponent=3.0)
        window = np.hanning(256)[:, None] * np.hanning(256)
        power = np.abs(np.fft.rfft2(field * window)) ** 2
        f = np.hypot(np.fft.fftfreq(256)[:, None], np.fft.rfftfreq(256))
        bands = np.geomspace(0.03, 0.3, 9)
        mean = [power[(f >= a) & (f < b)].mean() for a, b in itertools.pairwise(bands)]
        slopes.append(np.polyfit(np.log(np.sqrt(bands[1:] * bands[:-1])), np.log(mean), 1)[0])
    assert -3.3 < np.mean(slopes) < -2.7


def test_fractal_field_is_standardised():
    field = fractal_field(stream(1, "test"), (40, 60), exponent=3.0)
    assert field.shape == (40, 60)
    assert abs(field.mean()) < 1e-5
    assert abs(field.std() - 1) < 1e-5


def test_smooth_fields_have_unit_variance_and_the_stated_correlation():
    fields = smooth_fields(stream(2, "test"), 4000, (5, 7), scale=2.0)
    assert abs(fields.var() - 1) < 0.05
    correlation = np.corrcoef(fields[:, 2, 1], fields[:, 2, 4])[0, 1]  # 3 cells apart
    assert abs(correlation - np.exp(-9 / 16)) < 0.05
