// A precompiled table of replacements of a SentencePiece model: a double-array tree (Darts-clone) of
// the texts to replace, whose values are places in a list of replacements that each end with a NUL.
import { wrongModel } from './protobuf';

/** What to put for characters. */
export class Charsmap {
  /** Bytes of the longest match at the place that was asked last; 0 for none. */
  length = 0;
  /** Where its replacement is in {@link replacements}. */
  begin = 0;
  end = 0;
  /** Whether a longer text might have matched more. */
  cutShort = false;
  readonly replacements: Uint8Array;
  private readonly units: Uint32Array;

  /** @throws SiglipError ERR_TOKENIZER when the bytes are no such table */
  constructor(bytes: Uint8Array, file: string) {
    const view = new DataView(bytes.buffer, bytes.byteOffset, bytes.length);
    const size = bytes.length < 4 ? 0 : view.getUint32(0, true);
    if (size === 0 || size % 4 !== 0 || size + 4 >= bytes.length) {
      throw wrongModel(file, 'its table of replacements is damaged');
    }
    this.units = new Uint32Array(size / 4);
    for (let i = 0; i < this.units.length; i++) this.units[i] = view.getUint32(4 + 4 * i, true);
    this.replacements = bytes.subarray(4 + size);
    if (this.replacements.at(-1) !== 0) {
      throw wrongModel(file, 'its list of replacements does not end');
    }
  }

  /** Looks for the longest text to replace that begins at `at`. */
  match(text: Uint8Array, at: number, end: number): boolean {
    const { units } = this;
    this.length = 0;
    this.cutShort = true;
    let node = offsetOf(units[0]);
    for (let i = at; i < end; i++) {
      node ^= text[i];
      const unit = units[node];
      // A damaged table may point outside: what is read there is undefined, and no label.
      if (unit === undefined || (unit & 0x800000ff) !== text[i]) {
        this.cutShort = false;
        break;
      }
      node ^= offsetOf(unit);
      if ((unit & 0x100) !== 0) {
        this.length = i + 1 - at;
        this.begin = (units[node] ?? 0) & 0x7fffffff;
      }
    }
    if (this.length === 0) return false;
    this.begin = Math.min(this.begin, this.replacements.length - 1);
    this.end = this.replacements.indexOf(0, this.begin);
    return true;
  }
}

// Distance from a node to its children.
function offsetOf(unit: number): number {
  return (unit >>> 10) << ((unit & 0x200) >>> 6);
}
