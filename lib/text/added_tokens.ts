// Tokens that are recognised in the raw text, before it is normalised: at every place the longest
// that begins there, from left to right.
import { SiglipError } from '../errors';

/** A token that is matched as a whole. */
export interface AddedToken {
  readonly id: number;
  readonly content: string;
  /** Whether it steers a model instead of standing for text: `<eos>`, `<pad>`. */
  readonly special: boolean;
}

/** A piece of text between added tokens, or the id of one. */
export type Segment = string | number;

/** Finds added tokens in texts. */
export class AddedTokenMatcher {
  // By first UTF-16 unit, the longest first.
  private readonly byFirst = new Map<number, AddedToken[]>();
  // One character class of all first units, to skip what cannot begin a token.
  private readonly firsts: RegExp | undefined;
  /** UTF-16 units of the longest token. */
  readonly longest: number;

  constructor(tokens: readonly AddedToken[]) {
    for (const token of tokens) {
      if (token.content === '') {
        throw new SiglipError(
          'ERR_TOKENIZER',
          `tokenizer: added token ${String(token.id)} must have content, got an empty string`,
        );
      }
      const unit = token.content.charCodeAt(0);
      const group = this.byFirst.get(unit);
      if (group === undefined) this.byFirst.set(unit, [token]);
      else group.push(token);
    }
    for (const group of this.byFirst.values()) {
      group.sort((a, b) => b.content.length - a.content.length);
    }
    this.longest = tokens.reduce((most, { content }) => Math.max(most, content.length), 0);
    const units = [...this.byFirst.keys()].map(
      (unit) => `\\u${unit.toString(16).padStart(4, '0')}`,
    );
    this.firsts = units.length === 0 ? undefined : new RegExp(`[${units.join('')}]`, 'g');
  }

  /**
   * Splits a text, lazily: a caller that has enough ids stops asking.
   *
   * @param end - where to stop: tokens are recognised that begin before it, and text is given up to it
   */
  *split(text: string, end = text.length): Generator<Segment> {
    let begin = 0;
    for (let at = this.seek(text, 0); at >= 0 && at < end;) {
      const token = this.match(text, at);
      if (token === undefined) {
        at = this.seek(text, at + 1);
        continue;
      }
      if (at > begin) yield text.slice(begin, at);
      yield token.id;
      begin = at + token.content.length;
      at = this.seek(text, begin);
    }
    if (begin < end) yield text.slice(begin, end);
  }

  private match(text: string, at: number): AddedToken | undefined {
    return this.byFirst
      .get(text.charCodeAt(at))
      ?.find(({ content }) => text.startsWith(content, at));
  }

  private seek(text: string, from: number): number {
    if (this.firsts === undefined) return -1;
    this.firsts.lastIndex = from;
    return this.firsts.exec(text)?.index ?? -1;
  }
}
