// Requests that are stopped at an awkward moment.
import { createServer } from 'node:http';
import type { AddressInfo } from 'node:net';
import { setTimeout as sleep } from 'node:timers/promises';
import { hubEnvironment } from '../../../lib/weights/hub/environment';
import { HubSession } from '../../../lib/weights/hub/session';
import { failure } from '../../failure';

// The whole body is here, but its end has not been read: fetch then leaves the next read waiting.
test('a signal between two reads of a body ends the request', async () => {
  const server = createServer((_, response) => response.end(Buffer.alloc(20_000)));
  await new Promise<void>((done) => server.listen(0, '127.0.0.1', done));
  const endpoint = `http://127.0.0.1:${String((server.address() as AddressInfo).port)}`;
  try {
    const stop = new AbortController();
    const environment = hubEnvironment('test', { endpoint });
    const session = new HubSession('test', 'a/b', environment, stop.signal);
    let pieces = 0;
    const work = session.request(
      endpoint,
      () => ({}),
      async ({ body }) => {
        for await (const piece of body) {
          pieces += piece.byteLength > 0 ? 1 : 0;
          stop.abort();
          await sleep(20);
        }
      },
    );
    expect((await failure(work)).code).toBe('ERR_ABORTED');
    expect(pieces).toBe(1);
  } finally {
    server.closeAllConnections();
    server.close();
  }
});
