// A tokenizer that is read when the first text comes: half a second that a program which embeds
// images alone never spends.
import type { Tokenizer } from './tokenizer';

/** A tokenizer that opens another one when it is asked for anything. */
export class DeferredTokenizer implements Tokenizer {
  private opened: Tokenizer | undefined;

  /** @param open - called once, with the first call; what it throws the call throws, and the next again */
  constructor(private readonly open: () => Tokenizer) {}

  get vocabulary(): number {
    return this.tokenizer.vocabulary;
  }

  get padId(): number {
    return this.tokenizer.padId;
  }

  get eosId(): number {
    return this.tokenizer.eosId;
  }

  get lowercase(): boolean {
    return this.tokenizer.lowercase;
  }

  encode(texts: string | readonly string[], length?: number): Int32Array {
    return this.tokenizer.encode(texts, length);
  }

  ids(text: string, limit?: number): Int32Array {
    return this.tokenizer.ids(text, limit);
  }

  decode(ids: ArrayLike<number>): string {
    return this.tokenizer.decode(ids);
  }

  private get tokenizer(): Tokenizer {
    this.opened ??= this.open();
    return this.opened;
  }
}
