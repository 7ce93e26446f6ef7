"""The steps that train: everything here needs torch (``pip install splitmesh[train]``) and is imported when it is used."""
