"""Touch the residual stream: find layers, capture, steer, choose tokens."""
