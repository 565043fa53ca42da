from __future__ import annotations

import numpy as np
import pytest
import torch

from fedmerge.adapters.adapter import Lora
from fedmerge.adapters.spectra import Spectrum, spectra


@pytest.mark.parametrize("with_received", [False, True])
def test_singular_values_are_those_of_the_dense_updates(make, dense, with_received):
    received = make(0) if with_received else None
    deltas = [make(seed, scale=0.5) for seed in (1, 2)]
    found = spectra(deltas, received)
    before = dense(received) if received else None
    for client, delta in enumerate(deltas):
        for name, after in dense(delta, plus=received).items():
            values = np.linalg.svd(after - (before[name] if before else 0), compute_uv=False)
            got = found[name][client]
            np.testing.assert_allclose(got.values, values[: len(got.values)], rtol=1e-9)
            assert len(got.values) == min(*after.shape, 6 if received else 3)  # B_0 and dB_i, ranks 3 and 3
            assert got.energy(1) == pytest.approx(values[0] ** 2 / (values**2).sum())
            parts = values[values > 1e-12] / values.sum()
            assert got.effective_rank == pytest.approx(np.exp(-(parts * np.log(parts)).sum()))
        head = np.linalg.svd(delta.tensors["head.weight"].numpy(), compute_uv=False)
        np.testing.assert_allclose(found["head.weight"][client].values, head, rtol=1e-5)


def test_the_rank_is_not_that_of_the_factors_but_of_what_they_use(make):
    one = make(1)
    tensors = {name: tensor.clone() for name, tensor in one.tensors.items()}
    name = "base_model.model.layers.0.q_proj"
    tensors[f"{name}.lora_B.weight"][:, 1:] = 0
    found = spectra([type(one)(tensors, Lora(3, 6))])[name][0]
    assert found.effective_rank == pytest.approx(1)
    assert found.energy(1) == 1


def test_zero_updates_and_vectors():
    found = spectra([{"x": torch.zeros(2, 3), "bias": torch.ones(3)}])
    assert found == {"x": (Spectrum(()),)}
    assert (found["x"][0].effective_rank, found["x"][0].energy(1)) == (0.0, 0.0)


def test_equal_directions_share_the_energy():
    assert spectra([{"x": torch.eye(4)}])["x"][0].energy(3) == pytest.approx(0.75)
