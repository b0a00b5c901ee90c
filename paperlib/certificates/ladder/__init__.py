"""Other bounds of the ELBO from the literature of verification, each as a method beside intervals and CROWN."""
