"""Training forward against cached decoding: do both compute the same model?"""
