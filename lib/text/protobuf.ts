// The wire format of protocol buffers, as far as reading a file of pieces needs it.
import { SiglipError } from '../errors';

const KINDS = { integer: 0, eight: 1, bytes: 2, four: 5 } as const;

/** The fields of one message, one after the other, without copying anything. */
export class MessageCursor {
  /** Number of the field that was read last. */
  field = 0;
  /** Its value, where it is an integer. */
  integer = 0;
  /** Where its content lies, where it is no integer. */
  begin = 0;
  end = 0;

  constructor(
    private readonly file: string,
    readonly bytes: Uint8Array,
    private at = 0,
    private readonly limit = bytes.length,
  ) {}

  /** Reads the next field; false at the end. @throws SiglipError ERR_TOKENIZER */
  next(): boolean {
    if (this.at >= this.limit) return false;
    const tag = this.varint();
    this.field = Math.floor(tag / 8);
    switch (tag % 8) {
      case KINDS.integer:
        this.integer = this.varint();
        this.begin = this.end = this.at;
        return true;
      case KINDS.eight:
        return this.content(8);
      case KINDS.bytes:
        return this.content(this.varint());
      case KINDS.four:
        return this.content(4);
      default:
        throw wrongModel(this.file, `a field of an unknown kind at byte ${String(this.at)}`);
    }
  }

  /** The fields inside the field that was read last. */
  message(): MessageCursor {
    return new MessageCursor(this.file, this.bytes, this.begin, this.end);
  }

  /** The bytes of the field that was read last, not copied. */
  slice(): Uint8Array {
    return this.bytes.subarray(this.begin, this.end);
  }

  /** The float32 in the field that was read last. */
  float(): number {
    if (this.end - this.begin !== 4) throw wrongModel(this.file, 'a number of a wrong size');
    const { buffer, byteOffset } = this.bytes;
    return new DataView(buffer, byteOffset + this.begin, 4).getFloat32(0, true);
  }

  private content(length: number): boolean {
    if (length > this.limit - this.at) throw wrongModel(this.file, 'a field is cut short');
    this.begin = this.at;
    this.end = this.at + length;
    this.at = this.end;
    return true;
  }

  private varint(): number {
    let value = 0;
    for (let scale = 1; scale < 2 ** 70; scale *= 128) {
      if (this.at >= this.limit) throw wrongModel(this.file, 'a number is cut short');
      const byte = this.bytes[this.at++];
      value += (byte & 127) * scale;
      if (byte < 128) return value;
    }
    throw wrongModel(this.file, 'a number is too long');
  }
}

/** The error for a file that is no SentencePiece model, or none that can be used. */
export function wrongModel(file: string, problem: string): SiglipError {
  return new SiglipError(
    'ERR_TOKENIZER',
    `${file}: content must be a SentencePiece model, got something else: ${problem}`,
  );
}
