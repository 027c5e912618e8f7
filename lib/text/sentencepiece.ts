// tokenizer.model, SentencePiece's own file: a protocol buffer whose field 1 repeats
// { 1: piece, 2: score, 3: type }. Of a byte-pair model the merges follow from the pieces: two pieces
// merge when together they are a piece, the better score first.
import { SiglipError } from '../errors';
import type { AddedToken } from './added_tokens';
import { MergeTable } from './merge_table';
import type { TokenizerDefinition } from './tokenizer';
import { byteIds, characterIds } from './vocabulary';

// A byte order mark is a piece like any other.
const UTF8 = new TextDecoder('utf-8', { ignoreBOM: true });

const TYPES = { normal: 1, unknown: 2, control: 3, userDefined: 4, byte: 6 } as const;

interface Piece {
  readonly text: string;
  readonly score: number;
  readonly type: number;
}

/**
 * The definition in the bytes of a `tokenizer.model`.
 *
 * @param added - tokens matched as a whole, from `tokenizer_config.json`; default: the model's
 *   user-defined pieces
 * @throws SiglipError ERR_TOKENIZER
 */
export function parseSentencePiece(
  bytes: Uint8Array,
  file = 'tokenizer.model',
  added?: readonly AddedToken[],
): TokenizerDefinition {
  const pieces = new MessageReader(file, bytes).fields(1).map((message) => pieceOf(file, message));
  const ids = new Map(pieces.map(({ text }, id) => [text, id]));
  const unknown = pieces.findIndex(({ type }) => type === TYPES.unknown);
  if (unknown < 0 || ids.size !== pieces.length) {
    throw wrong(file, 'pieces must be distinct and one of them the unknown one');
  }
  const ordinary = new Map([...ids].filter(([, id]) => isOrdinary(pieces[id])));
  return {
    pieces: pieces.map(({ text }) => text),
    added: added ?? userDefined(pieces),
    merges: mergesOf(pieces, ordinary),
    characters: characterIds(ordinary),
    bytes: byteIds(ids),
    unknown,
    fuseUnknown: true,
    lowercase: false,
  };
}

function isOrdinary({ type }: Piece): boolean {
  return type === TYPES.normal || type === TYPES.userDefined;
}

function userDefined(pieces: readonly Piece[]): AddedToken[] {
  return pieces.flatMap(({ text, type }, id) =>
    type === TYPES.userDefined ? { id, content: text, special: false } : [],
  );
}

function mergesOf(pieces: readonly Piece[], ordinary: ReadonlyMap<string, number>): MergeTable {
  const byScore = [...ordinary.values()].sort((a, b) => pieces[b].score - pieces[a].score || a - b);
  const [left, right, result, priority]: number[][] = [[], [], [], []];
  byScore.forEach((id, rank) => {
    const { text } = pieces[id];
    for (let at = 1; at < text.length; at++) {
      const l = ordinary.get(text.slice(0, at));
      if (l === undefined) continue;
      const r = ordinary.get(text.slice(at));
      if (r === undefined) continue;
      left.push(l);
      right.push(r);
      result.push(id);
      priority.push(rank);
    }
  });
  const [l, r, both, rank] = [left, right, result, priority].map((list) => Int32Array.from(list));
  return new MergeTable(l, r, both, rank);
}

function pieceOf(file: string, message: Uint8Array): Piece {
  const reader = new MessageReader(file, message);
  const text = UTF8.decode(reader.fields(1).at(-1) ?? new Uint8Array());
  if (text === '') throw wrong(file, 'pieces must have text');
  return { text, score: reader.float(2), type: reader.integer(3) ?? TYPES.normal };
}

function wrong(file: string, problem: string): SiglipError {
  return new SiglipError(
    'ERR_TOKENIZER',
    `${file}: content must be a SentencePiece model, got something else: ${problem}`,
  );
}

const WIRE = { integer: 0, eight: 1, bytes: 2, four: 5 } as const;

/** The fields of one message. */
class MessageReader {
  private readonly groups = new Map<number, Uint8Array[]>();
  private readonly integers = new Map<number, number>();
  private at = 0;

  constructor(
    private readonly file: string,
    private readonly bytes: Uint8Array,
  ) {
    while (this.at < bytes.length) this.field();
  }

  /** Contents of a field of bytes, as often as it occurs. */
  fields(number: number): readonly Uint8Array[] {
    return this.groups.get(number) ?? [];
  }

  integer(number: number): number | undefined {
    return this.integers.get(number);
  }

  /** 0 where it is absent. */
  float(number: number): number {
    const bytes = this.groups.get(number)?.at(-1);
    if (bytes?.length !== 4) return 0;
    return new DataView(bytes.buffer, bytes.byteOffset, 4).getFloat32(0, true);
  }

  private field(): void {
    const tag = this.varint();
    const number = Math.floor(tag / 8);
    switch (tag % 8) {
      case WIRE.integer:
        this.integers.set(number, this.varint());
        return;
      case WIRE.eight:
        this.take(number, 8);
        return;
      case WIRE.bytes:
        this.take(number, this.varint());
        return;
      case WIRE.four:
        this.take(number, 4);
        return;
      default:
        throw wrong(this.file, `a field of an unknown kind at byte ${String(this.at)}`);
    }
  }

  private take(number: number, length: number): void {
    if (length > this.bytes.length - this.at) throw wrong(this.file, 'a field is cut short');
    const content = this.bytes.subarray(this.at, this.at + length);
    this.at += length;
    const group = this.groups.get(number);
    if (group === undefined) this.groups.set(number, [content]);
    else group.push(content);
  }

  private varint(): number {
    let value = 0;
    for (let scale = 1; scale < 2 ** 70; scale *= 128) {
      if (this.at >= this.bytes.length) throw wrong(this.file, 'a number is cut short');
      const byte = this.bytes[this.at++];
      value += (byte & 127) * scale;
      if (byte < 128) return value;
    }
    throw wrong(this.file, 'a number is too long');
  }
}
