"""Make the sample images: letters A to Z in many fonts (``train.tar.gz``, ``test.tar.gz``).

Command, from any folder::

    python make.py [--out FOLDER] [--seed N] [--jobs N]

It needs this package, and on Debian 12 the font packages that
``python make.py --packages`` prints (``apt install --no-install-recommends $(...)``).
The same seed, fonts and library versions give the same bytes.

One sample is ``KEY.png``, an 8-bit grey image of 32x32 pixels showing one upper-case letter, and
``KEY.cls``, its class (0 for A to 25 for Z). No font family of the test set is in the training set,
and families that share their drawings (say Lato and Carlito) are on the same side.
"""

import argparse
import io
import math
import os
import re
from concurrent.futures import ProcessPoolExecutor
from functools import lru_cache
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFilter, ImageFont

from selfdistill.samples.shard import write_shard

CLASSES = tuple("ABCDEFGHIJKLMNOPQRSTUVWXYZ")
TRAIN_PER_CLASS = 300
TEST_PER_CLASS = 60
SIZE = 32  # side of the image, pixels
SCALE = 4  # drawn this many times larger, then reduced
GREY_STEP = 8  # grey levels are multiples of this, which PNG compresses well
INVERTED = 0.15  # share of bright letters on a dark ground
HEIGHT = (18, 27)  # longer side of the letter, pixels
TURN = 22  # most degrees of rotation
ROAM = 0.6  # share of the free room that the letter's centre uses
FONT_ROOT = Path("/usr/share/fonts")

# Family: Debian package: file below FONT_ROOT, {a,b} standing for several styles, * for ALL_STYLES.
ALL_STYLES = "{Regular,Bold,Italic,BoldItalic}"
TRAIN_FONTS = """
Go: fonts-go: fonts-go/Go-{Regular,Bold,Italic}.ttf
Bebas: fonts-bebas-neue: opentype/bebas-neue/BebasNeue-{Regular,Bold}.otf
BecauseWeConnect: fonts-bwht: opentype/bwht/BecauseWeConnect-Regular.otf
BecauseWeLearn: fonts-bwht: opentype/bwht/BecauseWeLearn-Regular.otf
BecauseWeMentor: fonts-bwht: opentype/bwht/BecauseWeMentor-Regular.otf
Cabin: fonts-cabin: opentype/cabin/Cabin-*.otf
Cantarell: fonts-cantarell: opentype/cantarell/Cantarell-{Regular,Bold}.otf
DancingScript: fonts-dancingscript: opentype/dancingscript/DancingScript-{Regular,Bold}.otf
GFSDidot: fonts-gfs-didot: opentype/didot/GFSDidot{,Bold,Italic}.otf
Dosis: fonts-dosis: opentype/dosis/Dosis-Bo{ok,ld}.otf
EBGaramond: fonts-ebgaramond: opentype/ebgaramond/EBGaramond12-{Regular,Bold,Italic}.otf
FantasqueSansMono: fonts-fantasque-sans: opentype/fantasque-sans/Normal/OTF/FantasqueSansMono-*.otf
Prociono: fonts-prociono: opentype/fonts-prociono/Prociono.otf
Junction: fonts-junction: opentype/junction/Junction.otf
Jura: fonts-jura: opentype/jura/Jura-{Regular,Bold}.otf
LeagueMono: fonts-league-mono: opentype/league-mono/LeagueMono-{Regular,Bold}.otf
LeagueSpartan: fonts-league-spartan: opentype/league-spartan/LeagueSpartan-{Regular,Bold}.otf
Lobster: fonts-lobster: opentype/lobster/lobster.otf
LobsterTwo: fonts-lobstertwo: opentype/lobstertwo/LobsterTwo-*.otf
NationalPark: fonts-national-park: opentype/national-park/NationalPark-Regular.otf
OCRB: fonts-ocr-b: opentype/ocr-b/OCRB.otf
Quattrocento: fonts-quattrocento: opentype/quattrocento/Quattrocento-Regular.otf
RobotoSlab: fonts-roboto-slab: opentype/roboto/slab/RobotoSlab-{Regular,Bold}.otf
Sora: fonts-sora: opentype/sora/Sora-{Regular,Bold}.otf
STIX: fonts-stix: opentype/stix-word/STIX-*.otf
Yanone: fonts-yanone-kaffeesatz: opentype/yanone-kaffeesatz/YanoneKaffeesatz-{Regular,Bold}.otf
Accanthis: fonts-adf-accanthis: truetype/adf/AccanthisADFStd-*.otf
Baskervald: fonts-adf-baskervald: truetype/adf/BaskervaldADFStd{,-Bold,-Italic}.otf
Berenis: fonts-adf-berenis: truetype/adf/BerenisADFPro-*.otf
Irianis: fonts-adf-irianis: truetype/adf/IrianisADFStd-*.otf
Libris: fonts-adf-libris: truetype/adf/LibrisADFStd-*.otf
Romande: fonts-adf-romande: truetype/adf/RomandeADFStd-{Regular,Italic}.otf
Switzera: fonts-adf-switzera: truetype/adf/SwitzeraADF-*.otf
Universalis: fonts-adf-universalis: truetype/adf/UniversalisADFStd-*.otf
Andika: fonts-sil-andika: truetype/andika/Andika-*.ttf
AveriaGWF: fonts-averia-gwf: truetype/averia-gwf/AveriaGWF-*.ttf
AveriaSerifGWF: fonts-averia-serif-gwf: truetype/averia-gwf/AveriaSerifGWF-*.ttf
CharisSIL: fonts-sil-charis: truetype/charis/CharisSIL-*.ttf
ClearSans: fonts-clear-sans: truetype/clear-sans/ClearSans-*.ttf
Caladea: fonts-crosextra-caladea: truetype/crosextra/Caladea-*.ttf
Carlito: fonts-crosextra-carlito: truetype/crosextra/Carlito-*.ttf
DejaVuSans: fonts-dejavu-core: truetype/dejavu/DejaVuSans{,-Bold,-Oblique}.ttf
DejaVuSansMono: fonts-dejavu-core: truetype/dejavu/DejaVuSansMono{,-Bold,-Oblique}.ttf
DejaVuSerif: fonts-dejavu-core: truetype/dejavu/DejaVuSerif{,-Bold,-Italic}.ttf
DoulosSIL: fonts-sil-doulos: truetype/doulos/DoulosSIL-Regular.ttf
Eurofurence: fonts-eurofurence: truetype/eurofurence/eurof{55,75,56}.ttf
Fanwood: fonts-fanwood: truetype/fanwood/Fanwood{,-Italic}.otf
OldStandard: fonts-oldstandard: truetype/fonts-oldstandard/OldStandard-{Regular,Bold,Italic}.ttf
FreeMono: fonts-freefont-ttf: truetype/freefont/FreeMono{,Bold,Oblique,BoldOblique}.ttf
FreeSans: fonts-freefont-ttf: truetype/freefont/FreeSans{,Bold,Oblique,BoldOblique}.ttf
FreeSerif: fonts-freefont-ttf: truetype/freefont/FreeSerif{,Bold,Italic}.ttf
GentiumPlus: fonts-sil-gentiumplus: truetype/gentiumplus/GentiumPlus-*.ttf
GNUTypewriter: fonts-gnutypewriter: truetype/gnutypewriter/GNUTypewriter.ttf
Hack: fonts-hack: truetype/hack/Hack-*.ttf
Inconsolata: fonts-inconsolata: truetype/inconsolata/Inconsolata.otf
JetBrainsMono: fonts-jetbrains-mono: truetype/jetbrains-mono/JetBrainsMono-*.ttf
Lato: fonts-lato: truetype/lato/Lato-*.ttf
LiberationMono: fonts-liberation2: truetype/liberation2/LiberationMono-*.ttf
LiberationSans: fonts-liberation2: truetype/liberation2/LiberationSans-*.ttf
LiberationSerif: fonts-liberation2: truetype/liberation2/LiberationSerif-*.ttf
LindenHill: fonts-lindenhill: truetype/lindenhill/LindenHill{,-Italic}.otf
Monofur: fonts-monofur: truetype/monofur/monof5{5,6}.ttf
OpenSans: fonts-open-sans: truetype/open-sans/OpenSans-*.ttf
Osifont: fonts-osifont: truetype/osifont/osifont.ttf
Oxygen: fonts-oxygen: truetype/oxygen/Oxygen-Sans{,-Bold}.ttf
Quicksand: fonts-quicksand: truetype/quicksand/Quicksand-{Regular,Bold}.ttf
Roadgeek: fonts-roadgeek: truetype/roadgeek/RG2014{D,C,E}.ttf
Roboto: fonts-roboto-unhinted: truetype/roboto/unhinted/RobotoTTF/Roboto-*.ttf
RoutedGothic: fonts-routed-gothic: truetype/routed-gothic/routed-gothic.ttf
TiresiasLP: fonts-tiresias: truetype/tiresias/tiresias_lpfont.ttf
Tuffy: fonts-tuffy: truetype/tuffy/Tuffy.ttf
YuseiMagic: fonts-yusei-magic: truetype/yusei-magic/YuseiMagic-Regular.ttf
NotoSans: fonts-noto-core: truetype/noto/NotoSans-*.ttf
NotoSerif: fonts-noto-core: truetype/noto/NotoSerif-*.ttf
"""

TEST_FONTS = """
Arapey: fonts-arapey: opentype/arapey/Arapey-Regular.otf
B612: fonts-b612: opentype/b612/B612-*.otf
ComicNeue: fonts-comic-neue: opentype/comic-neue/ComicNeue-*.otf
CourierPrime: fonts-courier-prime: opentype/courier-prime/Courier Prime{, Bold, Italic}.otf
CourierPrimeSans: fonts-courier-prime: opentype/courier-prime/Courier Prime Sans{, Bold, Italic}.otf
Inter: fonts-inter: opentype/inter/Inter-*.otf
Junicode: fonts-junicode: opentype/junicode/JunicodeTwoBeta-*.otf
KaushanScript: fonts-kaushanscript: opentype/kaushanscript/KaushanScript-Regular.otf
LinBiolinum: fonts-linuxlibertine: opentype/linux-libertine/LinBiolinum_R{,B,I}.otf
LinLibertine: fonts-linuxlibertine: opentype/linux-libertine/LinLibertine_R{,B,I}.otf
GFSNeohellenic: fonts-gfs-neohellenic: opentype/neohellenic/GFSNeohellenic{,Bold,It}.otf
Play: fonts-play: opentype/play/Play-{Regular,Bold}.otf
GoudyBookletter: fonts-goudybookletter: opentype/sortsmill/GoudyBookletter1911.otf
Gillius: fonts-adf-gillius: truetype/adf/GilliusADF-*.otf
Ikarius: fonts-adf-ikarius: truetype/adf/IkariusADFStd-*.otf
Mekanus: fonts-adf-mekanus: truetype/adf/MekanusADFStd-*.otf
Tribun: fonts-adf-tribun: truetype/adf/TribunADFStd-*.otf
AnonymousPro: fonts-anonymous-pro: truetype/anonymous-pro/Anonymous Pro{, B, I}.ttf
Cardo: fonts-cardo: truetype/cardo/Cardo{104s,b101,i99}.ttf
Comfortaa: fonts-comfortaa: truetype/comfortaa/Comfortaa-{Regular,Bold}.ttf
Essays1743: fonts-essays1743: truetype/essays1743/Essays1743{,-Bold,-Italic}.ttf
FiraCode: fonts-firacode: truetype/firacode/FiraCode-{Regular,Bold}.ttf
Yrsa: fonts-yrsa-rasa: truetype/fonts-yrsa-rasa/Yrsa-*.ttf
HumorSans: fonts-humor-sans: truetype/humor-sans/Humor-Sans.ttf
Karla: fonts-karla: truetype/karla/Karla-*.otf
Manrope: fonts-manrope: truetype/manrope/Manrope-{Regular,Bold}.ttf
Mononoki: fonts-mononoki: truetype/mononoki/mononoki-{Regular,Bold,Italic}.ttf
OSPDIN: fonts-opendin: truetype/opendin/OSP-DIN.ttf
PTSerif: fonts-paratype: truetype/paratype/PTF{55F,75F,56F}.ttf
PTMono: fonts-paratype: truetype/paratype/PTM{55F,75F}.ttf
PTSans: fonts-paratype: truetype/paratype/PTS{55F,75F,56F}.ttf
Rufscript: fonts-rufscript: truetype/rufscript/Rufscript010.ttf
Vollkorn: fonts-vollkorn: truetype/vollkorn/Vollkorn-*.ttf
"""


def families(table: str) -> dict[str, list[Path]]:
    """The font files of each family in a table."""
    found: dict[str, list[Path]] = {}
    for line in table.strip().splitlines():
        name, _, place = line.split(": ")
        match = re.fullmatch(r"(.*)\{(.*)\}(.*)", place.replace("*", ALL_STYLES))
        if match:
            start, styles, end = match.groups()
            files = [FONT_ROOT / f"{start}{style}{end}" for style in styles.split(",")]
        else:
            files = [FONT_ROOT / place]
        found[name] = files
    return found


def packages() -> list[str]:
    """The Debian packages of the fonts."""
    lines = (TRAIN_FONTS + TEST_FONTS).split("\n")
    return sorted({line.split(": ")[1] for line in lines if line.strip()})


def check(fonts: dict[str, list[Path]]) -> None:
    """Stop unless each font draws 26 different letters."""
    for files in fonts.values():
        for file in files:
            masks = [glyph(file, letter, 24.0).tobytes() for letter in CLASSES]
            if len(set(masks)) != len(CLASSES) or any(not any(mask) for mask in masks):
                raise SystemExit(f"{file} does not draw 26 different letters")


@lru_cache(maxsize=64)
def load(file: Path, size: int) -> ImageFont.FreeTypeFont:
    """A font at a size in pixels."""
    return ImageFont.truetype(str(file), size, layout_engine=ImageFont.Layout.BASIC)


def glyph(file: Path, letter: str, height: float) -> Image.Image:
    """A mask of a letter, cropped to its box, its longer side about ``height`` pixels (scaled)."""
    font = load(file, 200)
    left, top, right, bottom = font.getbbox(letter)
    mask = Image.new("L", (math.ceil(right - left), math.ceil(bottom - top)))
    ImageDraw.Draw(mask).text((-left, -top), letter, font=font, fill=255)
    ratio = height * SCALE / max(mask.height, mask.width)
    size = (max(1, round(mask.width * ratio)), max(1, round(mask.height * ratio)))
    return mask.resize(size, Image.Resampling.LANCZOS)


def place(mask: Image.Image, rng: np.random.Generator) -> Image.Image:
    """A mask of the whole image with the letter slanted, turned and moved."""
    side = SIZE * SCALE
    angle = math.radians(rng.uniform(-TURN, TURN))
    slant = rng.uniform(-0.15, 0.15)
    stretch = rng.uniform(0.85, 1.15)
    turn = np.array([[math.cos(angle), -math.sin(angle)], [math.sin(angle), math.cos(angle)]])
    forward = turn @ np.array([[stretch, slant], [0.0, 1.0]])
    half = np.abs(forward) @ np.array([mask.width / 2, mask.height / 2])
    room = ROAM * np.maximum(side / 2 - half, 0.0) + SCALE  # a corner may leave the image
    centre = side / 2 + room * rng.uniform(-1, 1, 2)
    inverse = np.linalg.inv(forward)
    shift = np.array([mask.width / 2, mask.height / 2]) - inverse @ centre
    data = (*inverse[0], shift[0], *inverse[1], shift[1])
    return mask.transform((side, side), Image.Transform.AFFINE, data, Image.Resampling.BILINEAR)


def ground(level: float, contrast: float, rng: np.random.Generator) -> Image.Image:
    """The background: a gradient about a grey level, with some blobs and lines."""
    side = SIZE * SCALE
    angle = rng.uniform(0, 2 * math.pi)
    steps = np.linspace(-0.5, 0.5, side)
    slope = math.cos(angle) * steps[None, :] + math.sin(angle) * steps[:, None]
    grey = np.clip(level + contrast * rng.uniform(0, 0.7) * slope, 0, 255)
    image = Image.fromarray(np.round(grey).astype(np.uint8))
    draw = ImageDraw.Draw(image)
    for _ in range(rng.integers(0, 3)):  # blobs, weaker than the letter
        x, y = rng.uniform(0, side, 2)
        wide, high = rng.uniform(3, 9, 2) * SCALE
        fill = int(np.clip(level + contrast * rng.uniform(-0.45, 0.45), 0, 255))
        draw.ellipse((x - wide, y - high, x + wide, y + high), fill=fill)
    return image.filter(ImageFilter.GaussianBlur(SCALE * rng.uniform(0.5, 1.5)))


def line(draw: ImageDraw.ImageDraw, fill: int, rng: np.random.Generator) -> None:
    """A straight line through the image."""
    side = SIZE * SCALE
    x, y = rng.uniform(0.1, 0.9, 2) * side
    angle = rng.uniform(0, math.pi)
    reach = np.array([math.cos(angle), math.sin(angle)]) * rng.uniform(0.3, 1.5) * side
    ends = (x - reach[0], y - reach[1], x + reach[0], y + reach[1])
    draw.line(ends, fill=fill, width=round(rng.uniform(0.8, 1.8) * SCALE))


def draw_sample(task: tuple[Path, int, tuple[int, int, int]]) -> bytes:
    """The PNG of one sample, from its font file, class and random seed."""
    file, label, seed = task
    rng = np.random.default_rng(seed)
    contrast = rng.uniform(80, 200)
    low = rng.uniform(0, 255 - contrast)
    dark, bright = low, low + contrast
    ink, paper = (bright, dark) if rng.random() < INVERTED else (dark, bright)
    image = ground(paper, contrast, rng)
    draw = ImageDraw.Draw(image)
    for _ in range(rng.integers(0, 3)):
        line(draw, int(np.clip(paper + (ink - paper) * rng.uniform(0.2, 0.6), 0, 255)), rng)
    mask = place(glyph(file, CLASSES[label], rng.uniform(*HEIGHT)), rng)
    image.paste(round(ink), (0, 0), mask)
    if rng.random() < 0.5:  # a line over the letter
        line(draw, int(np.clip(paper + (ink - paper) * rng.uniform(0.2, 0.6), 0, 255)), rng)
    image = image.filter(ImageFilter.GaussianBlur(SCALE * rng.uniform(0.2, 0.6)))
    small = np.asarray(image.resize((SIZE, SIZE), Image.Resampling.BOX), dtype=np.float64)
    small = small + rng.normal(0, rng.uniform(0, 5), small.shape)
    grey = np.clip(np.round(small / GREY_STEP) * GREY_STEP, 0, 255).astype(np.uint8)
    stream = io.BytesIO()
    Image.fromarray(grey).save(stream, format="PNG", optimize=True)
    return stream.getvalue()


def make(split: int, out: Path, seed: int, jobs: int) -> None:
    """Make one shard: split 0 is for training, 1 for testing."""
    name = ("train", "test")[split]
    fonts = families((TRAIN_FONTS, TEST_FONTS)[split])
    check(fonts)
    names = sorted(fonts)
    rng = np.random.default_rng([seed, split])
    tasks = []
    for label in range(len(CLASSES)):
        order = rng.permutation(len(names))
        for index in range((TRAIN_PER_CLASS, TEST_PER_CLASS)[split]):
            files = fonts[names[order[index % len(names)]]]
            tasks.append((files[rng.integers(len(files))], label))
    order = rng.permutation(len(tasks))
    seeded = [(*tasks[i], (seed, split, int(i))) for i in order]
    images = []
    with ProcessPoolExecutor(jobs) as pool:
        for image in pool.map(draw_sample, seeded, chunksize=64):
            images.append(image)
            if len(images) % 500 == 0 or len(images) == len(seeded):
                print(f"\r{name}: {len(images)} of {len(seeded)}", end="", flush=True)
    target = out / f"{name}.tar.gz"
    labels = [task[1] for task in seeded]
    write_shard(target, name, "png", zip(images, labels, strict=True))
    print(f" images, {len(fonts)} families, {target.stat().st_size} bytes")


def main() -> None:
    """Read the command line and make both shards."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=Path(__file__).resolve().parent)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--packages", action="store_true", help="print the Debian font packages")
    args = parser.parse_args()
    if args.packages:
        print(" ".join(packages()))
        return
    args.out.mkdir(parents=True, exist_ok=True)
    for split in (0, 1):
        make(split, args.out, args.seed, args.jobs)


if __name__ == "__main__":
    main()
