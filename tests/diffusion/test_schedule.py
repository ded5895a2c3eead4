"""The noise schedule against golden numbers, identities and diffusers."""

import pytest
import torch
from diffusers import CogVideoXDDIMScheduler

from cogvideox.diffusion.schedule import make_schedule

SHIFTS = (1.0, 3.0)


@pytest.fixture
def pair():
    rng = torch.Generator().manual_seed(0)
    return torch.randn(4, 3, 5, 2, generator=rng), torch.randn(4, 3, 5, 2, generator=rng)


@pytest.mark.parametrize(
    ("shift", "rescaled", "golden"),
    [
        (1.0, False, {0: 0.99915**0.5, 999: 0.068265}),
        (3.0, False, {0: 0.997454**0.5, 999: 0.039474}),
        (1.0, True, {0: 0.99915**0.5, 19: 0.990460, 439: 0.573898, 999: 0.0}),
        (3.0, True, {0: 0.997454**0.5, 19: 0.972920, 439: 0.375313, 999: 0.0}),
    ],
)
def test_golden_numbers(shift, rescaled, golden):
    root = make_schedule(shift, zero_terminal_snr=rescaled).alpha_bar.sqrt()
    assert {t: root[t].item() for t in golden} == pytest.approx(golden, abs=6e-7)


@pytest.mark.parametrize("shift", SHIFTS)
def test_table_equals_diffusers_bit_for_bit(shift):
    oracle = CogVideoXDDIMScheduler(
        beta_schedule="scaled_linear", rescale_betas_zero_snr=True, snr_shift_scale=shift
    )
    table = make_schedule(shift).alpha_bar
    assert table.dtype == torch.float64
    assert table.device.type == "cpu"
    assert torch.equal(table, oracle.alphas_cumprod)


@pytest.mark.parametrize("shift", SHIFTS)
def test_terminal_snr_is_exactly_zero_and_the_table_falls(shift):
    table = make_schedule(shift).alpha_bar
    assert table[-1] == 0
    assert (table.diff() < 0).all()


def test_shift_divides_the_snr():
    plain, shifted = (make_schedule(s, zero_terminal_snr=False).alpha_bar for s in SHIFTS)
    torch.testing.assert_close(plain / (1 - plain) / 3, shifted / (1 - shifted))


@pytest.mark.parametrize("shift", SHIFTS)
def test_noise_and_velocity_equal_diffusers(shift, pair):
    oracle = CogVideoXDDIMScheduler(
        beta_schedule="scaled_linear", rescale_betas_zero_snr=True, snr_shift_scale=shift
    )
    schedule, t = make_schedule(shift), torch.tensor([0, 19, 439, 999])
    # diffusers rounds alpha_bar to float32 before it takes 1 - alpha_bar: 2e-5 off in sigma at t = 0.
    torch.testing.assert_close(schedule.add_noise(*pair, t), oracle.add_noise(*pair, t), rtol=0, atol=3e-6)
    torch.testing.assert_close(schedule.velocity(*pair, t), oracle.get_velocity(*pair, t), rtol=0, atol=3e-6)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_velocity_is_a_rotation_and_inverts(pair, dtype):
    x0, noise = (p.to(dtype) for p in pair)
    schedule, t = make_schedule(), torch.tensor([0, 300, 700, 999])
    x_t, v = schedule.add_noise(x0, noise, t), schedule.velocity(x0, noise, t)
    torch.testing.assert_close(x_t**2 + v**2, x0**2 + noise**2)
    torch.testing.assert_close(schedule.predict_x0(x_t, v, t), x0)
    torch.testing.assert_close(schedule.predict_noise(x_t, v, t), noise)
    assert torch.equal(x_t[3], noise[3])
    assert torch.equal(v[3], -x0[3])


def test_each_sample_has_its_own_timestep(pair):
    schedule, t = make_schedule(), torch.tensor([5, 250, 600, 999])
    together = schedule.add_noise(*pair, t)
    for s in range(4):
        alone = schedule.add_noise(pair[0][s], pair[1][s], t[s : s + 1])
        assert torch.equal(together[s], alone)


def test_half_precision_is_promoted(pair):
    schedule, t = make_schedule(), torch.tensor([0, 19, 439, 999])
    half = [p.to(torch.bfloat16) for p in pair]
    assert torch.equal(schedule.add_noise(*half, t), schedule.add_noise(*(h.float() for h in half), t))
