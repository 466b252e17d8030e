// SPDX-License-Identifier: Apache-2.0
#include "train_impl.hpp"

#if defined(HYMBA_AMX)
template <>
std::optional<hymba::Validation> cli::train_with<hymba::arch::amx<hymba::arch::best>>(const TrainRequest& request,
                                                                                      const ReportStart& start,
                                                                                      const ReportProgress& report) {
  return train_with_impl<hymba::arch::amx<hymba::arch::best>>(request, start, report);
}
#endif
