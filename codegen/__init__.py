if __name__ != "spa.codegen":
    raise ImportError("import spa.codegen: the folder 'codegen' is a part of the package 'spa'")
