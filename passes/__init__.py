if __name__ != "spa.passes":
    raise ImportError("import spa.passes: the folder 'passes' is a part of the package 'spa'")
