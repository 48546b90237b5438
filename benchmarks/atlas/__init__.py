"""The atlas: which factors of a training make the cone, by sweeps over small networks."""
