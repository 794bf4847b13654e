"""One file per objective: what is trained, on which batch, with which loss."""
