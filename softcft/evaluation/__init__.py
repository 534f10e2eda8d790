"""How good counterfactuals are: numbers, tables, figures."""
