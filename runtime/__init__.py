if __name__ != "spa.runtime":
    raise ImportError("import spa.runtime: the folder 'runtime' is a part of the package 'spa'")
