// The towers of big_vision, every intermediate and gradient within the bar that the case suggests for
// it: sixteen times what the original itself loses in float32.
import type { Bars } from './close';
import { describeGolden } from './golden';
import { configOf, hostParameters, runTwoTowers, runVision } from './product';
import { expectNaflex, expectTwoTowersFixed, naflexCase, twoTowersFixedCase } from './subject';

const BARS: Bars = {
  state: (_, suggested = 0) => suggested,
  gradient: (_, suggested = 0) => suggested,
};

describeGolden('bv_two_towers_fixed', (golden) => {
  test('every intermediate, loss and every gradient', async () => {
    const subject = twoTowersFixedCase(golden);
    const config = configOf(subject);
    const run = await runTwoTowers(config, hostParameters(config, subject.parameters), subject);
    expectTwoTowersFixed(golden, run, BARS);
  });
});

describeGolden('bv_naflex', (golden) => {
  test('every intermediate of the valid rows and every gradient', async () => {
    expectNaflex(golden, await runVision(naflexCase(golden)), BARS);
  });

  test('the same without padding', async () => {
    expectNaflex(golden, await runVision(naflexCase(golden), 'packed'), BARS);
  });
});
