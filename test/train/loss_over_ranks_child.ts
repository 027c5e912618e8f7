// One rank of a job that a test starts: the golden case of the loss over ranks, for every way texts can
// travel. Every rank compares what all have found.
import { DeviceArray } from '../../lib/array';
import type { Communicator } from '../../lib/comm';
import { evenParts, openMpi } from '../../lib/comm';
import { LossOverRanks } from '../../lib/train';
import { expectClose, within } from '../golden_cases/close';
import { GoldenCase } from '../golden_cases/golden';
import { item } from '../reference/nd_array';

async function tryGolden(comm: Communicator): Promise<void> {
  const golden = new GoldenCase('openclip_ring_loss');
  const [batch, embedding] = golden.tensor('in/image').shape;
  const parts = evenParts(batch, comm.size);
  const rows = parts.slice(1).map((end, r) => end - parts[r]);
  const counts = rows.map((n) => n * embedding);
  const own = (name: string): DeviceArray =>
    DeviceArray.from(
      Float32Array.from(golden.tensor(name).data).subarray(
        parts[comm.rank] * embedding,
        parts[comm.rank + 1] * embedding,
      ),
      [rows[comm.rank], embedding],
    );
  const scalar = (name: string): DeviceArray =>
    DeviceArray.from(Float32Array.of(item(golden.tensor(name))));
  const check = (name: string, actual: ArrayLike<number>): void => {
    expectClose(name, actual, golden.tensor(name), within(golden.atol(name)));
  };
  for (const exchange of ['gather', 'ring', 'twoWayRing'] as const) {
    const loss = new LossOverRanks({ comm, rows, embedding, exchange });
    const images = own('in/image');
    const result = await loss.run(own('in/text'), () => Promise.resolve(images), {
      logitScale: scalar('in/t'),
      logitBias: scalar('in/b'),
    });
    for (const which of ['images', 'texts'] as const) {
      const all = new Float32Array(batch * embedding);
      await comm.allGather((await result[which].read()) as Float32Array, counts, all);
      check(`grad_wrt/closed_form/${which === 'images' ? 'image' : 'text'}`, all);
    }
    check('out/closed_form/loss', [result.loss]);
    check('grad_wrt/closed_form/t', [result.logitScale]);
    check('grad_wrt/closed_form/b', [result.logitBias]);
  }
}

async function main(): Promise<void> {
  const comm = await openMpi();
  try {
    await tryGolden(comm);
    await comm.close();
  } catch (error) {
    comm.abort(error);
  }
}

void main();
