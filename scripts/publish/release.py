"""Release qwen-job: from a tag to images, chart, wheel and notes that are signed and published.

The steps, in order. .github/workflows/release.yml calls each of them:

  check     the tag is this version, CHANGELOG.md has its section, and nothing is uncommitted
  images    build and push one image per set, with SBOM and provenance; remember the digests
  fill      copy the files of git to OUT/source and fill in version, commit and digests there
  build     wheel, sdist, chart and SBOM in OUT/dist, from OUT/source; check them
  notes     OUT/notes.md: the section of CHANGELOG.md, the images, and how to verify them
  sign      sign the images and the files with cosign, keyless
  mirror    copy the images and the chart to $SECOND_REGISTRY, where it is set
  publish   push the chart, and create the release with its files

With --dry-run, steps that need a registry or a signature print their commands and run none; the others run. With
--archive too, the step images writes OCI archives in OUT/images, of images that `make image` built here, and the later
steps use their digests. The index takes the wheel from a step of the workflow: trusted publishing has no command.
"""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from scripts.publish import files, published
from scripts.publish.release_run import Refused, Run

STEPS = {
    "check": files.check,
    "images": published.images,
    "fill": files.fill,
    "build": files.build,
    "notes": files.notes,
    "sign": published.sign,
    "mirror": published.mirror,
    "publish": published.publish,
}


def main(arguments: list[str]) -> int:
    """Run the steps; return the exit code."""
    parser = argparse.ArgumentParser(
        prog="scripts/release", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("steps", nargs="*", metavar="STEP", help="default: all, in order")
    parser.add_argument("--dry-run", action="store_true", help="publish and sign nothing: print those commands")
    parser.add_argument("--archive", action="store_true", help="with --dry-run: images of this machine as archives")
    parser.add_argument("--tag", help="the tag to release [default: v and this version]")
    parser.add_argument("--set", dest="sets", action="append", help="only this image (images); repeat for more")
    parser.add_argument("-o", "--out", type=Path, default=Path("dist/release"), help="folder of what is made")
    words = parser.parse_args(arguments)
    unknown = [step for step in words.steps if step not in STEPS]
    if unknown:
        parser.error(f"unknown step: {', '.join(unknown)}; the steps are {', '.join(STEPS)}")
    if words.archive and not words.dry_run:
        parser.error("--archive is for --dry-run: a release pushes its images")
    out, archive = words.out.resolve(), words.archive
    run = Run(out, words.tag, dry=words.dry_run, archive=archive, sets=words.sets, environ=os.environ)
    try:
        for step in words.steps or STEPS:
            run.say(f"== {step}")
            STEPS[step](run)
    except Refused as error:
        print(f"release: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
