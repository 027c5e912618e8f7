// Rows that failed, on standard error.
import type { FailedRow } from '../bulk';

const shownFailures = 10;

/** Names the first failures on standard error; the file of failures has them all. */
export class FailureLog {
  count = 0;

  add({ id, code, reason }: Pick<FailedRow, 'id' | 'code' | 'reason'>): void {
    this.count++;
    if (this.count > shownFailures + 1) return;
    const text =
      this.count <= shownFailures
        ? `siglip2: ${shortened(id)}: ${reason} (${code})`
        : 'siglip2: more failures follow and are not shown';
    // The progress bar may stand on this line.
    process.stderr.write(`${process.stderr.isTTY ? '\r\u001b[K' : ''}${text}\n`);
  }
}

function shortened(id: string): string {
  return id.length > 200 ? `${id.slice(0, 200)}…` : id;
}
