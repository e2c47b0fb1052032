"""ModelZoo's `params.yaml` (releases 1.x, the form of CrystalCoder's three files) in Crystal's words, and back.

The surprise: reading checks by writing. What a file must hold where Crystal leaves no choice or has derived it (the initializers, the
learning rate's multiple, the loss weight) is what `written` makes of the values just read; a key that `written` does not make is not
understood. A file does not say everything: its stage's name, where it starts from and its FIM order are the configured stage's.
"""
