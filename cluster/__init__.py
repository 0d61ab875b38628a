"""How a run reaches machines: renders, submits and watches jobs. Imports no torch."""
