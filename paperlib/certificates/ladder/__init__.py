"""Other bounds from the literature of verification, beside intervals and CROWN.

Methods of certification: zonotopes (`zonotope`), the dual network (`dual_network`), the Lagrangian dual (`lagrangian`)
and beta-CROWN (`beta_crown`). No methods, but functions: `random_projection`, whose bounds hold with a probability, and
semidefinite bounds of a decoder over a box of latents (`semidefinite`, `gradient_bound`).
"""
