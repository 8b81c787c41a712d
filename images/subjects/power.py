"""A numerical job: eigenvalues by power iteration, and a spectrum, with every step written down.

Usage: power.py FOLDER STEPS GATE GATE_STEP

Everything comes from one seed: two runs give the same bytes. FOLDER gets `trace` (a record of each step, in one file
that stays open), `state.npy` (replaced at each step) and `spectrum.npy` (at the end). At GATE_STEP it goes on only once
there is a file GATE.
"""

from __future__ import annotations

import os
import sys
import time

import numpy as np

SIZE = 320
ROWS = 8


def main(folder: str, steps: int, gate: str, gate_step: int) -> None:
    random = np.random.default_rng(7)
    matrix = random.standard_normal((SIZE, SIZE))
    matrix = matrix @ matrix.T / SIZE
    vectors = random.standard_normal((SIZE, SIZE // 2))
    with open(f"{folder}/trace", "w+b", buffering=0) as trace:
        for step in range(steps):
            while step == gate_step and not os.path.exists(gate):
                time.sleep(0.02)
            for _ in range(3):
                vectors, _ = np.linalg.qr(matrix @ vectors)
            values = np.einsum("ij,ij->j", vectors, matrix @ vectors)
            spectrum = np.abs(np.fft.rfft2(vectors + random.standard_normal(vectors.shape)))
            trace.write(np.concatenate([values, spectrum[:ROWS].ravel()]).tobytes())
            with open(f"{folder}/state.new", "wb") as file:
                np.save(file, vectors)
            os.rename(f"{folder}/state.new", f"{folder}/state.npy")
            print(f"step {step}: {values[0]:.12e} {spectrum.sum():.12e}", flush=True)
    np.save(f"{folder}/spectrum.npy", spectrum)
    print("done", flush=True)


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]), sys.argv[3], int(sys.argv[4]))
