"""Closed-form, layer-wise methods: each rounds a weight against the Hessian of its own error."""
