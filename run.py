"""`python run.py -m MMGCL -d baby --encoder vlmo`: the same as `mmrec-lmm run ...`, from a checkout."""

from mmrec_lmm.cli import main

if __name__ == "__main__":
    raise SystemExit(main())
