"""One folder per modality; see ``base.py`` for what each must bring."""
