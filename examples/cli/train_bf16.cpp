// SPDX-License-Identifier: Apache-2.0
#include <hymba/exec/amx.hpp>

#include "train_impl.hpp"

#if defined(__AMX_TILE__) && defined(__AMX_BF16__)
template <>
std::optional<hymba::Validation> cli::train_with<hymba::arch::amx<hymba::arch::best>>(const TrainRequest& request,
                                                                                      const ReportStart& start,
                                                                                      const ReportProgress& report) {
  return train_with_impl<hymba::arch::amx<hymba::arch::best>>(request, start, report);
}
#endif
