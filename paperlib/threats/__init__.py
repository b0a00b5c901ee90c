"""What an adversary can do: perturbation sets, and attacks that search them."""
