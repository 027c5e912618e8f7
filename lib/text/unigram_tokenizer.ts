// SigLIP 1's tokenizer: a SentencePiece unigram vocabulary over text that is lower-cased and freed of
// punctuation. Its <pad> is not used: padding is </s>, as is the end.
// Source: transformers models/siglip/tokenization_siglip.py.
import { SiglipError } from '../errors';
import { AddedTokenMatcher } from './added_tokens';
import { Normalizer } from './normalizer';
import type { SentencePieceModel } from './sentencepiece';
import { PIECE } from './sentencepiece';
import type { Tokenizer, TokenizerOptions } from './tokenizer';
import {
  decodeBytes,
  encodeTexts,
  expectId,
  expectText,
  IdList,
  idsOfBeginning,
  wholePairs,
} from './tokenizer';
import { UnigramEncoder } from './unigram';

const END = '</s>';
const UNKNOWN = '<unk>';
const MARK = '▁';
const TO_UTF8 = new TextEncoder();

/** A unigram vocabulary at work. */
export class UnigramTokenizer implements Tokenizer {
  readonly vocabulary: number;
  readonly padId: number;
  readonly eosId: number;
  readonly lowercase: boolean;
  private readonly matcher: AddedTokenMatcher;
  private readonly normalizer: Normalizer;
  private readonly encoder: UnigramEncoder;
  private readonly markId: number;
  // Every piece of text is encoded behind "<unk>", so that a "▁" at its beginning is not taken for a
  // space and dropped; so many ids at the front are of that.
  private readonly leading: number;

  /** See `loadTokenizer`. @throws SiglipError ERR_TOKENIZER */
  constructor(
    readonly model: SentencePieceModel,
    options: TokenizerOptions = {},
  ) {
    const { pieces, file, kind } = model;
    if (kind !== 'unigram') {
      throw new SiglipError(
        'ERR_TOKENIZER',
        `${file}: model_type must be unigram, as in the vocabularies of SigLIP, got ${kind}`,
      );
    }
    this.vocabulary = pieces.size;
    this.eosId = pieces.find(END);
    if (this.eosId < 0) {
      throw new SiglipError('ERR_TOKENIZER', `${file}: vocabulary must have ${END}, got none`);
    }
    this.padId = this.eosId;
    this.lowercase = options.lowercase !== false;
    this.matcher = new AddedTokenMatcher(
      options.specialTokens === 'ignore'
        ? []
        : [
            { id: this.eosId, content: END, special: true },
            { id: model.unknown, content: UNKNOWN, special: true },
          ],
    );
    this.normalizer = new Normalizer(model);
    this.encoder = new UnigramEncoder(model);
    this.markId = pieces.find(MARK);
    this.leading = this.encodeBehind('').length;
  }

  encode(texts: string | readonly string[], length?: number): Int32Array {
    return encodeTexts(this, texts, length);
  }

  ids(text: string, limit = Infinity): Int32Array {
    return idsOfBeginning(
      expectText('ids', text),
      () => new IdList(limit),
      (list, beginning, whole) => {
        this.fill(list, MARK + beginning.replaceAll(MARK, ' '), whole);
      },
    );
  }

  decode(ids: ArrayLike<number>): string {
    const { pieces, types, unknown } = this.model;
    let text = '';
    let bytes: number[] = [];
    const flush = (): void => {
      text += decodeBytes(bytes);
      bytes = [];
    };
    for (let i = 0; i < ids.length; i++) {
      const id = expectId(ids[i], this.vocabulary);
      if (types[id] === PIECE.byte) {
        bytes.push(Number(pieces.text(id).slice(1, -1)));
        continue;
      }
      flush();
      // SentencePiece shows what is unknown in this way.
      if (id === unknown) text += ' ⁇ ';
      else if (types[id] !== PIECE.control) text += pieces.text(id);
    }
    flush();
    return text.replaceAll(MARK, ' ').replace(/^ /u, '');
  }

  // Adds the ids of a text, or, when more of it follows, those that hold whatever that is.
  private fill(list: IdList, text: string, whole: boolean): void {
    const end = whole ? text.length : wholePairs(text, text.length - this.matcher.longest);
    let open = '';
    for (const segment of this.matcher.split(text, end)) {
      if (list.full) return;
      if (typeof segment !== 'number') {
        open = segment;
        continue;
      }
      const ids = open === '' ? [] : this.encodePiece(canonical(open, this.lowercase));
      // A text that begins with a special token begins with it.
      const bare = list.length === 0 && ids.length === 1 && ids[0] === this.markId;
      if (!bare) list.pushAll(ids);
      list.push(segment);
      open = '';
    }
    if (open === '') return;
    if (!whole) this.fillBeginning(list, open);
    else list.pushAll(this.encodePiece(canonical(open, this.lowercase)));
  }

  private encodePiece(piece: string): number[] {
    return this.encodeBehind(piece).slice(this.leading);
  }

  private encodeBehind(piece: string): number[] {
    const text = this.normalizer.normalize(TO_UTF8.encode(UNKNOWN + piece), true);
    return this.encoder.encode(text);
  }

  private fillBeginning(list: IdList, segment: string): void {
    const certain = canonical(certainCase(segment), this.lowercase);
    const text = this.normalizer.normalize(TO_UTF8.encode(UNKNOWN + certain), false);
    const count = list.limit - list.length + this.leading;
    const ids = this.encoder.encodeBeginning(text, count);
    if (ids !== undefined) list.pushAll(ids.slice(this.leading));
  }
}

// What Python calls white space, separators among the control characters included, and its list of
// punctuation.
// eslint-disable-next-line no-control-regex
const SPACES = /[\t-\r\x1c-\x20\x85\xa0\u1680\u2000-\u200a\u2028\u2029\u202f\u205f\u3000]+/gu;
const PUNCTUATION = /[!-/:-@[-`{-~]+/gu;

// Lower case, without punctuation, single spaces, none at the ends.
function canonical(text: string, lowercase: boolean): string {
  const lower = lowercase ? text.toLowerCase() : text;
  const bare = lower.replace(PUNCTUATION, '').replace(SPACES, ' ');
  return bare.slice(bare.startsWith(' ') ? 1 : 0, bare.endsWith(' ') ? -1 : undefined);
}

/**
 * As much of a text that goes on as has a certain lower case. That of Σ depends on the letter after
 * it, and on nothing else that follows; every Σ but the last has one.
 */
function certainCase(text: string): string {
  const sigma = text.lastIndexOf('Σ');
  if (sigma < 0 || /[\p{Ll}\p{Lu}\s]/u.test(text.slice(sigma + 1))) return text;
  return text.slice(0, sigma);
}
